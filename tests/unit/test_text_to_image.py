"""The complete model in a folder."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.config import ModelConfig, SamplerConfig, TokenizerConfig
from dalle_model.dalle import DalleShape, build_dalle
from dalle_model.errors import DataError, SourceError, UsageError
from dalle_model.model_card import CardFacts
from dalle_model.pretrained import CARD, FILES, INDEX
from dalle_model.runtime import Runtime
from dalle_model.text_to_image import TextToImage
from dalle_model.tokenizers.registry import build_tokenizer


def small(image_vocab_levels: tuple[int, ...] = (8, 8)) -> TextToImage:
    tokenizer = build_tokenizer(
        TokenizerConfig(image_px=16, downsampling=4, fsq_levels=image_vocab_levels, width=8, blocks_per_group=1),
        Runtime().generator(1),
    )
    bpe = train_bpe(["red heart", "clown face"] * 3, 280)
    shape = DalleShape.of(tokenizer, CaptionTokenizer.from_json(bpe).vocab_size, 6)
    model = build_dalle(ModelConfig(dim=32, depth=1, heads=2), shape, Runtime().generator(2))
    return TextToImage(model, tokenizer, bpe, SamplerConfig(temperature=0.8))


def test_saved_model_draws_the_same_pictures(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path / "model")
    again = TextToImage.from_pretrained(tmp_path / "model")
    first, second = (m.draw(["red heart", "clown face"], n=3, seed=5) for m in (model, again))
    assert first.shape == (2, 3, 16, 16, 3) and first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert again.fingerprint == model.fingerprint and again.sampler == model.sampler
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted([*FILES, CARD, INDEX])


def test_identity_is_that_of_weights_and_config_alone() -> None:
    model, other = small(), small()
    assert model.identity == replace(other, sampler=SamplerConfig(), bpe=other.bpe + b" ").identity
    assert replace(other, bpe=other.bpe + b" ").fingerprint != model.fingerprint
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1e-3
    assert other.identity != model.identity


def test_a_picture_is_the_same_drawn_alone() -> None:
    model = small()
    together = model.draw(["red heart", "clown face"], n=2)
    assert np.array_equal(model.draw(["clown face"], n=1)[0, 0], together[1, 0])
    assert len({p.tobytes() for p in together.reshape(4, -1)}) == 4


def test_parts_that_do_not_fit_are_refused() -> None:
    a, b = small(), small((4, 4))
    with pytest.raises(DataError, match="one model artifact"):
        TextToImage(a.model, b.tokenizer, a.bpe, a.sampler)


def test_incomplete_folder_names_what_is_missing(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    (tmp_path / "bpe.json").unlink()
    with pytest.raises(DataError, match=r"bpe\.json missing"):
        TextToImage.from_pretrained(tmp_path)


def test_no_pictures_asked_for_is_an_error() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        small().draw(["red heart"], n=0)


def test_untrained_model_captions_without_failing() -> None:
    model = small()
    words = model.caption(model.draw(["red heart"], n=2)[0])
    assert len(words) == 2


def test_a_changed_or_mixed_folder_is_refused(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    config = tmp_path / "sampler.json"
    config.write_text(config.read_text().replace("0.8", "0.9"))
    with pytest.raises(DataError, match=r"sampler\.json differ from model_index\.json"):
        TextToImage.from_pretrained(tmp_path)


def test_the_card_has_a_header_for_the_hub_and_survives_hostile_text(tmp_path: Path) -> None:
    facts = CardFacts("Hearts", {"Source": "imagefolder:a|b\n<script>"}, {"recognisability": 0.875}, {"seed": 1})
    small().save_pretrained(tmp_path, facts)
    card = ModelCard.load(tmp_path / CARD)
    assert card.data.pipeline_tag == "text-to-image" and card.data.library_name == "dalle-prefect"
    for told in (
        "# Hearts",
        "imagefolder:a\\|b &lt;script>",
        "| recognisability | 0.875 |",
        "## Intended use",
        "## Limits",
    ):
        assert told in card.text
    assert f"| Parameters | {small().model.num_parameters:,} |" in card.text


def test_a_name_of_the_hub_is_read_from_its_snapshot(tmp_path: Path) -> None:
    model = small()
    repository = tmp_path / "models--someone--hearts"
    model.save_pretrained(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    again = TextToImage.from_pretrained("someone/hearts", cache_dir=tmp_path, local_files_only=True)
    assert again.fingerprint == model.fingerprint
    with pytest.raises(SourceError, match="someone/apples is neither a folder here nor a model of the"):
        TextToImage.from_pretrained("someone/apples", cache_dir=tmp_path, local_files_only=True)


def test_push_makes_a_private_repository_and_uploads_safetensors_json_and_the_card() -> None:
    class Recorder:
        """Takes what ``HfApi`` takes: each call is checked against its signature."""

        def __init__(self) -> None:
            self.calls: list[tuple[str, dict[str, Any]]] = []
            self.names: list[str] = []

        def create_repo(self, *args: Any, **kwargs: Any) -> None:
            self.calls.append(
                ("create_repo", inspect.signature(HfApi.create_repo).bind(None, *args, **kwargs).arguments)
            )

        def upload_folder(self, *args: Any, **kwargs: Any) -> None:
            inspect.signature(HfApi.upload_folder).bind(None, *args, **kwargs)
            folder = Path(kwargs["folder_path"])
            self.names = sorted(p.name for p in folder.iterdir() if p.name in kwargs["allow_patterns"])
            TextToImage.from_pretrained(folder)

    hub = Recorder()
    small().push_to_hub("someone/hearts", hub=hub)
    assert hub.calls[0][1]["repo_id"] == "someone/hearts" and hub.calls[0][1]["private"] is True
    assert hub.names == sorted([*FILES, CARD, INDEX])


def test_an_address_is_fetched_by_the_package_that_names_its_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small().save_pretrained(tmp_path / "hearts")
    (tmp_path / "fetching_example.py").write_text(
        f"from pathlib import Path\ndef fetch(uri): return Path({str(tmp_path)!r}) / uri.rpartition('/')[2]\n"
    )
    about = tmp_path / "fetching_example-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fetching-example\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[dalle_model.fetchers]\nexample = fetching_example:fetch\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert TextToImage.from_pretrained("example://bucket/hearts").fingerprint == small().fingerprint
    with pytest.raises(UsageError, match="nothing installed fetches gopher://"):
        TextToImage.from_pretrained("gopher://bucket/hearts")
