"""Published metrics on supplied weights: closed forms, the declared hash, and no network anywhere."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dalle_model.distances import frechet
from dalle_model.errors import DataError
from dalle_model.published import ClipJudge, InceptionFeatures, clip_scores, cmmd
from dalle_model.runtime import Runtime

pytestmark = pytest.mark.xdist_group("transformers")

PICTURES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16))).float() / 255


class Stand(nn.Module):
    """In the place of Inception: the mean of each channel of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def saved(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "inception.pt"
    torch.jit.script(Stand()).save(str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_inception_sees_levels_around_128_at_299_px_and_its_hash_is_held(tmp_path: Path) -> None:
    path, digest = saved(tmp_path)
    rows = InceptionFeatures(path, digest, Runtime()).of(PICTURES)
    expected = (PICTURES.mean((2, 3)).numpy() * 255 - 128) / 128
    assert rows == pytest.approx(expected, abs=0.02)
    with pytest.raises(DataError, match="the config declares 0000"):
        InceptionFeatures(path, "0" * 64, Runtime())
    with pytest.raises(DataError, match="is no file"):
        InceptionFeatures(tmp_path / "nothing.pt", digest, Runtime())


def test_frechet_with_fewer_pictures_than_features_is_the_same_figure() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, 3)), rng.normal(size=(14, 3)) * 1.5 + 1
    turn = np.linalg.qr(rng.normal(size=(40, 40)))[0][:3]  # the same rows in 40 dimensions
    assert frechet(a @ turn, b @ turn) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(a @ turn, a @ turn) == pytest.approx(0, abs=1e-9)


def test_cmmd_and_clip_score_are_their_formulas() -> None:
    a, b = np.eye(4)[[0, 1]], np.eye(4)[[2, 3]]
    near, far = 1.0, np.exp(-2 / 200)
    assert cmmd(a, b) == pytest.approx(1000 * ((near + far) / 2 * 2 - 2 * far))
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)
    assert clip_scores(a, np.array([[1.0, 0, 0, 0], [0, -1.0, 0, 0]])).tolist() == [2.5, 0.0]


def test_a_clip_of_a_folder_judges_pictures_and_words(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {w: i for i, w in enumerate(["<|startoftext|>", "<|endoftext|>", "a</w>", "r", "e", "d</w>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    config = CLIPConfig(
        text_config={**small, "vocab_size": 8, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    judge = ClipJudge(tmp_path, digest, Runtime())
    images, captions = judge.of(PICTURES), judge.captions(["a red", "a", "", "red", "a red " * 30])
    assert images.shape == captions.shape == (5, 8)
    assert np.linalg.norm(images, axis=1) == pytest.approx(np.ones(5)) and np.isfinite(captions).all()
    assert (np.abs(judge.of(PICTURES[2:3]) - images[2:3]) < 1e-5).all()
    assert 0 <= clip_scores(images, captions).min() <= clip_scores(images, captions).max() <= 2.5
    with pytest.raises(DataError, match="the config declares"):
        ClipJudge(tmp_path, "1" * 64, Runtime())
