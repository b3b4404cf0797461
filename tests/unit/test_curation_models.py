"""Models that score pairs: what they are known by, that their scores are stored, and what happens without one."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.config import CurateConfig, IngestConfig, ModelConfig, SamplerConfig, TokenizerConfig
from dalle_model.curation.scorers import Clip, ImageClassifier, OwnModel, folder_digest
from dalle_model.dalle import DalleShape, build_dalle
from dalle_model.errors import DataError, RefNotFound, UsageError
from dalle_model.images import stack_squares
from dalle_model.runtime import Runtime
from dalle_model.text_to_image import TextToImage
from dalle_model.tokenizers.registry import build_tokenizer
from tasks.artifacts import Manifest
from tasks.curate_scores import stored_tables
from tasks.model_scores import model_digests

pytestmark = pytest.mark.xdist_group("transformers")  # the first use of a model imports for seconds

TEXTS = ["a red boat", "a blue house", "a green tree", "a small dog"]
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained image classifier with a label that means unsafe."""
    folder = str(tmp_path_factory.mktemp("classifier"))
    torch.manual_seed(0)
    labels = {0: "normal", 1: "nsfw"}
    config = transformers.ViTConfig(**TINY, image_size=224, patch_size=56, num_labels=2, id2label=labels)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained CLIP with a vocabulary of letters."""
    import json

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    text = {**TINY, "vocab_size": len(vocabulary), "max_position_embeddings": 16, "eos_token_id": len(vocabulary) - 1}
    transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=text, vision_config={**TINY, "image_size": 224, "patch_size": 56}, projection_dim=8
        )
    ).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return str(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, Manifest]:
    folder = tmp_path_factory.mktemp("data")
    pictures = {f"{n}.png": encoded(photo(40, 40, seed=n), "PNG") for n in range(len(TEXTS))}
    lines = [{"file_name": f"{n}.png", "text": text} for n, text in enumerate(TEXTS)]
    data = Data(folder)
    source = write_folder(folder / "set", pictures, lines)
    return data, data.ingest(IngestConfig(source=f"imagefolder:{source}", rows_per_shard=3))


def test_scores_of_a_model_are_stored_and_thresholds_ask_it_no_more(
    dataset: tuple[Data, Manifest], classifier: str, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, pairs = dataset
    config = CurateConfig(valid_share=0, nsfw_model=classifier, max_nsfw=1.0, agreement_model=clip)
    first = data.curate(config, pairs)
    scores = {(r["id"], r["rule"]): r["score"] for r in data.rows(first, "scores")}
    images = [row["image"] for row in data.rows(pairs, "pairs")]
    ids = [row["id"] for row in data.rows(pairs, "pairs")]
    unsafe = ImageClassifier(classifier, Runtime()).score(images, TEXTS)
    fit = Clip(clip, Runtime()).score(images, [row["caption"] for row in data.rows(pairs, "pairs")])
    assert [scores[i, "nsfw"] for i in ids] == pytest.approx(unsafe.tolist(), abs=2e-4)
    assert [scores[i, "agreement"] for i in ids] == pytest.approx(fit.tolist(), abs=2e-4)
    assert not {"nsfw", "image_text_agreement"} & first.stats["not_checked"].keys()

    def refuse(*_: object) -> None:
        raise AssertionError("the model was asked again")

    monkeypatch.setattr("tasks.model_scores._opened", refuse)
    threshold = float(np.median(unsafe))
    second = data.curate(config.model_copy(update={"max_nsfw": threshold}), pairs)
    assert second.rows == int((unsafe <= threshold).sum()) < 4
    assert {r["reason"] for r in data.rows(second, "ledger") if not r["kept"]} == {"not_safe_for_work"}
    assert sum(t.num_rows for t in stored_tables(data.store, first, config)) == 4


def test_a_model_is_known_by_its_content(classifier: str, tmp_path: Path, dataset: tuple[Data, Manifest]) -> None:
    data, _ = dataset
    import shutil

    copy = Path(shutil.copytree(classifier, tmp_path / "elsewhere"))
    assert folder_digest(copy) == folder_digest(classifier)
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert folder_digest(copy) != folder_digest(classifier)
    assert model_digests(CurateConfig(nsfw_model=classifier), data.settings)["nsfw"].startswith("classifier ")


def test_what_is_no_model_is_refused_in_words(tmp_path: Path, dataset: tuple[Data, Manifest], classifier: str) -> None:
    data, pairs = dataset
    with pytest.raises(UsageError, match="neither nudenet nor a folder"):
        model_digests(CurateConfig(nsfw_model="no-such"), data.settings)
    with pytest.raises(UsageError, match=r"no config\.json"):
        model_digests(CurateConfig(agreement_model=str(tmp_path)), data.settings)
    with pytest.raises(RefNotFound):
        model_digests(CurateConfig(agreement_model="production"), data.settings)
    with pytest.raises(UsageError, match="is of kind pairs"):
        model_digests(CurateConfig(agreement_model=pairs.fingerprint), data.settings)
    with pytest.raises(DataError, match=r"does not load as CLIPModel"):
        Clip(classifier, Runtime())


def test_a_model_of_this_package_scores_what_the_picture_brings() -> None:
    bpe = train_bpe(["red heart", "clown face"] * 3, 280)
    tokenizer = build_tokenizer(
        TokenizerConfig(image_px=16, downsampling=4, fsq_levels=(8, 8), width=8, blocks_per_group=1),
        Runtime().generator(1),
    )
    shape = DalleShape.of(tokenizer, CaptionTokenizer.from_json(bpe).vocab_size, 8)
    network = build_dalle(ModelConfig(dim=32, depth=1, heads=2), shape, Runtime().generator(2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.2)
    model = TextToImage(network, tokenizer, bpe, SamplerConfig())
    images = [encoded(photo(40, 40, seed=n), "PNG") for n in range(3)]
    scores = OwnModel(model, Runtime()).score(images, ["red heart", "clown face", "red heart"])
    shown = stack_squares(images, 16)
    gain = model.score_text(shown[:1], ["red heart"]) - model.score_text(None, ["red heart"])
    tokens = len(CaptionTokenizer.from_json(bpe).encode("red heart"))
    assert scores[0] == pytest.approx(float(gain[0]) / tokens, abs=2e-4)
    assert scores[0] != scores[2], "the picture counts"
