"""Features are fixed, named and hashed; distances on them grow as real pictures are blurred, noised and mixed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dalle_model.config import TokenizerConfig
from dalle_model.distances import frechet, sliced_wasserstein
from dalle_model.errors import DataError
from dalle_model.features import RandomFeatures, ThumbnailFeatures, TokenizerFeatures
from dalle_model.images import to_float
from dalle_model.scenes import render, scene_at
from dalle_model.tokenizers.registry import build_tokenizer

PX = 32


def pictures(first, count):
    return to_float(np.stack([render(scene_at(5, i).things, PX) for i in range(first, first + count)]))


REAL, OTHER = pictures(0, 150), pictures(150, 150)


def test_random_features_are_the_same_for_ever():
    features = RandomFeatures()
    assert features.name == "random_convolutions_32"
    assert features.digest == "c06a5f71402cdba86fd25d8263d9e35e51177ae731661d67669f554df6142988"
    assert features.of(REAL[:1])[0, :3] == pytest.approx(
        [0.13349099113329055, -0.012855196915807325, -0.08892480742960991], rel=1e-9
    )


def test_a_row_does_not_depend_on_its_neighbours():
    features = RandomFeatures()
    assert features.of(REAL)[100] == pytest.approx(features.of(REAL[100:101])[0], rel=1e-12)


# Frechet wants more pictures than features, so not thumbnails, which have 768.
@pytest.mark.parametrize(
    ("features", "distance"),
    [
        (RandomFeatures(), frechet),
        (RandomFeatures(), sliced_wasserstein),
        (ThumbnailFeatures(8), sliced_wasserstein),
    ],
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", "")),
)
def test_distances_grow_under_blur_noise_and_mixing(features, distance):
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=OTHER.shape)).float()
    real = features.of(REAL)
    damages = {
        "blur": [OTHER, *(F.interpolate(F.avg_pool2d(OTHER, f), size=PX, mode="bilinear") for f in (2, 4, 8))],
        "noise": [(OTHER + s * noise).clamp(0, 1) for s in (0, 0.1, 0.2, 0.4)],
        "mixing": [torch.cat([OTHER[n:], 1 - OTHER[:n]]) for n in (0, 30, 60, 120)],
    }
    for name, sets in damages.items():
        figures = [distance(real, features.of(images)) for images in sets]
        assert figures == sorted(figures), (name, figures)
        assert figures[-1] > 1.5 * figures[0], (name, figures)


def test_thumbnails_measure_root_mean_squared_error():
    a, b = ThumbnailFeatures().of(torch.stack([torch.zeros(3, PX, PX), torch.full((3, PX, PX), 0.25)]))
    assert np.linalg.norm(a - b) == pytest.approx(0.25)


@pytest.mark.parametrize("kind", ["fsq", "vq", "dvae"])
def test_a_tokenizer_offers_its_own_features(kind):
    config = TokenizerConfig(kind=kind, image_px=PX, width=8, blocks_per_group=1, num_codes=64)
    torch.manual_seed(0)
    features = TokenizerFeatures(build_tokenizer(config).eval(), "abc")
    rows = features.of(REAL[:9])
    assert (features.name, features.digest) == (f"tokenizer_{kind}", "abc")
    assert rows.shape[0] == 9 and rows.dtype == np.float64 and np.isfinite(rows).all()
    assert len(np.unique(rows.round(9), axis=0)) == 9
    with pytest.raises(DataError, match="Resize them first"):
        features.of(torch.zeros(1, 3, 64, 64))
