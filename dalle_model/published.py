"""Published metrics on weights that the user supplies: FID (clean-fid's protocol), CMMD and CLIPScore.

Nothing is downloaded. Each file is held against the hash that the config declares, which becomes part of every record:
a figure of other weights is another figure.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dalle_model.distances import squared_distances
from dalle_model.errors import DataError
from dalle_model.runtime import Runtime

UInt8 = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]

_BATCH = 32
_INCEPTION_PX = 299
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_CMMD_SIGMA, _CMMD_SCALE = 10.0, 1000.0


def checked(path: Path, sha256: str) -> Path:
    """The file itself. DataError when it is not there or is another one than declared."""
    if not path.is_file():
        raise DataError(f"{path} is no file; give the weights' path, or leave it empty to go without the figure")
    found = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    if found.hexdigest() != sha256:
        raise DataError(
            f"{path} has sha256 {found.hexdigest()}, the config declares {sha256 or 'none'}; fix one of them"
        )
    return path


class InceptionFeatures:
    """Pool features of the TorchScript Inception that clean-fid uses (Parmar et al. 2022, arXiv 2104.11222).

    Pictures are resized to 299 px channel by channel, bicubic with antialiasing, in float and without rounding.
    """

    def __init__(self, path: Path, sha256: str, runtime: Runtime) -> None:
        """``path``: ``inception-2015-12-05.pt``."""
        self.name, self.digest = "inception (clean-fid)", sha256
        self._runtime = runtime
        try:
            self._layers = torch.jit.load(str(checked(path, sha256)), map_location=runtime.device).eval().layers  # type: ignore[no-untyped-call]
        except (RuntimeError, AttributeError) as error:
            raise DataError(
                f"{path} is not the TorchScript Inception with `layers` that clean-fid uses: {str(error)[:120]}"
            ) from error

    @torch.inference_mode()
    def of(self, images: Tensor) -> FloatArray:
        """Float [n, 3, H, W] in [0, 1], multiples of 1/255 -> float64 [n, 2048]."""
        levels = (images.permute(0, 2, 3, 1) * 255).round().numpy().astype(np.float32)
        rows = []
        for start in range(0, len(levels), _BATCH):
            resized = np.stack([_resized(picture, _INCEPTION_PX) for picture in levels[start : start + _BATCH]])
            batch = torch.from_numpy(resized).permute(0, 3, 1, 2).to(self._runtime.device)
            rows.append(self._layers((batch - 128) / 128).flatten(1).cpu().double())
        return torch.cat(rows).numpy()


class ClipJudge:
    """A CLIP model of transformers in a local folder, as the measure of pictures (CMMD) and of words (CLIPScore)."""

    def __init__(self, folder: Path, sha256: str, runtime: Runtime) -> None:
        """``sha256``: of ``model.safetensors`` in the folder."""
        from transformers import AutoTokenizer, CLIPModel

        checked(folder / "model.safetensors", sha256)
        self.name, self.digest = "clip", sha256
        self._runtime = runtime
        try:
            model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
            self._words: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder} holds no CLIP model of transformers with its tokenizer: {str(error)[:120]}"
            ) from error
        self._model = model.to(runtime.device).eval()

    @torch.inference_mode()
    def of(self, images: Tensor) -> FloatArray:
        """Float [n, 3, H, W] in [0, 1] -> unit vectors float64 [n, d]; bicubic resize in float to the model's size."""
        side = self._model.config.vision_config.image_size
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_CLIP_MEAN, _CLIP_STD))
        rows = []
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH].permute(0, 2, 3, 1).numpy().astype(np.float32)
            resized = np.stack([_resized(picture, side) for picture in part])
            batch = ((torch.from_numpy(resized).permute(0, 3, 1, 2) - mean) / std).to(self._runtime.device)
            pooled = self._model.vision_model(pixel_values=batch).pooler_output
            rows.append(F.normalize(self._model.visual_projection(pooled), dim=1).cpu().double())
        return torch.cat(rows).numpy()

    @torch.inference_mode()
    def captions(self, captions: Sequence[str]) -> FloatArray:
        """Captions -> unit vectors float64 [n, d]; cut at the model's length."""
        rows = []
        for start in range(0, len(captions), _BATCH):
            part = list(captions[start : start + _BATCH])
            limit = self._model.config.text_config.max_position_embeddings
            read = self._words(part, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            pooled = self._model.text_model(
                input_ids=read["input_ids"].to(self._runtime.device),
                attention_mask=read["attention_mask"].to(self._runtime.device),
            ).pooler_output
            rows.append(F.normalize(self._model.text_projection(pooled), dim=1).cpu().double())
        return torch.cat(rows).numpy()


def clip_scores(images: FloatArray, captions: FloatArray) -> FloatArray:
    """2.5 max(cos, 0) of unit vectors [n, d] row by row -> [n] (Hessel et al. 2021, arXiv 2104.08718)."""
    scores: FloatArray = 2.5 * np.maximum((images * captions).sum(1), 0.0)
    return scores


def cmmd(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """CLIP maximum mean discrepancy of unit vectors [n, d] and [m, d], times 1000 (Jayasumana et al. 2024, arXiv 2401.09603).

    Gaussian kernel of sigma 10, the biased estimator, as in the authors' code.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def kernel(p: FloatArray, q: FloatArray) -> float:
        return float(np.exp(-squared_distances(p, q) / (2 * _CMMD_SIGMA**2)).mean())

    return _CMMD_SCALE * max(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y), 0.0)


def _resized(picture: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Float [H, W, 3] -> [side, side, 3], Pillow's antialiased bicubic on each channel, not rounded."""
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(picture[..., c])).resize((side, side), Image.Resampling.BICUBIC)
        )
        for c in range(3)
    ]
    return np.stack(channels, axis=2)
