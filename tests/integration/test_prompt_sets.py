"""A prompt set as a team keeps it: drawn, refused with a reason, grown, and written as WebP."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.tiny import TinyRun, quietly

from dalle_model.config import GenerateConfig, SamplerChange
from dalle_model.errors import UsageError
from flows.views import export_generations
from tasks.settings import Settings
from tasks.stages import GENERATE
from tasks.step import StepResult, run_step
from tasks.store import Store

pytestmark = pytest.mark.usefixtures("steps_here")


@pytest.fixture
def store(tiny_run: TinyRun, tmp_path: Path) -> Store:
    """A store in which nothing was generated yet."""
    return Store.open(tiny_run.copy(tmp_path / "artifacts", before="generate"))


def _draw(tiny: TinyRun, store: Store, **config: Any) -> StepResult:
    section = GenerateConfig(batch_size=8, rows_per_shard=4, **config)
    return quietly(GENERATE)(section, Settings(store=store.uri), **tiny.inputs("generate"))


def _rows(store: Store, result: StepResult) -> list[dict[str, Any]]:
    manifest = store.find("generate", result.ref.fingerprint)
    assert manifest is not None
    return [
        row
        for obj in manifest.objects_of("generations")
        for row in pq.read_table(io.BytesIO(store.read(obj))).to_pylist()
    ]


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_refused_prompts_are_rows_with_a_reason_and_the_policy_is_on_record(
    tiny_run: TinyRun, store: Store, tmp_path: Path
) -> None:
    own = tmp_path / "own.txt"
    own.write_text("dragonfruit\n")
    prompts = _write(
        tmp_path / "p.jsonl", [{"prompt": "a heart", "n": 2}, {"prompt": "a dr4gonfruit", "tags": "fruit"}]
    )
    result = _draw(tiny_run, store, prompts_uri=prompts, policy_file=str(own), n=1)
    drawn, again, refused = _rows(store, result)
    assert [r["status"] for r in (drawn, again, refused)] == ["drawn", "drawn", "refused"]
    assert "own list: dr4gonfruit" in refused["reason"] and refused["image"] == b"" and refused["tags"] == "fruit"
    manifest = store.find("generate", result.ref.fingerprint)
    assert manifest is not None
    assert (manifest.stats["drawn"], manifest.stats["refused"]) == (2, 1)
    assert set(manifest.stats["policy"]["lists"]) == {"profanity", "own list"}
    assert "nsfw" in manifest.stats["not_checked"]
    assert b"dr4gonfruit" in store.read(manifest.object_of("gallery"))
    own.write_text("zorb\n")  # another list is another batch, and now it is drawn
    other = _draw(tiny_run, store, prompts_uri=prompts, policy_file=str(own), n=1)
    assert other.ref.fingerprint != result.ref.fingerprint
    assert [r["status"] for r in _rows(store, other)] == ["drawn"] * 3


def test_a_listed_word_to_be_avoided_is_drawn_and_one_that_guidance_leads_towards_is_not(
    tiny_run: TinyRun, store: Store, tmp_path: Path
) -> None:
    rows = [{"prompt": "a heart"}, {"prompt": "a heart", "negative": "porn"}]
    prompts = _write(tmp_path / "p.jsonl", rows)
    for guidance, expected in ((2.0, ["drawn", "drawn"]), (0.5, ["drawn", "refused"])):
        result = _draw(tiny_run, store, prompts_uri=prompts, n=1, sampler=SamplerChange(guidance=guidance))
        assert [row["status"] for row in _rows(store, result)] == expected


def test_the_log_of_a_step_says_when_its_passes_are_compiled(
    tiny_run: TinyRun, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled they are in ``test_compiling``; here, who is told."""

    def compiling(function: Any, arguments: Any, parts: Any, say: Any, what: str, takes: str) -> Any:
        say(f"{what}: compiling, {takes}")
        return function(*arguments)

    monkeypatch.setattr("dalle_model.compiling.first_call", compiling)
    said: list[dict[str, Any]] = []
    section = GenerateConfig(prompts=("a heart",), n=1, weights="int8")
    run_step(GENERATE, section, tiny_run.inputs("generate"), Settings(store=store.uri), said.append)
    told = [event["text"] for event in said if event["event"] == "log"]
    assert told == ["drawing with int8 weights: compiling, 10 to 20 s"]


def test_a_grown_prompt_set_finds_the_pictures_that_are_there(tiny_run: TinyRun, store: Store, tmp_path: Path) -> None:
    rows = [{"prompt": f"heart number {n}"} for n in range(12)]
    first = _draw(tiny_run, store, prompts_uri=_write(tmp_path / "p.jsonl", rows), n=1)
    before = set(store.keys("parts/"))
    grown = _draw(tiny_run, store, prompts_uri=_write(tmp_path / "p.jsonl", [{"prompt": "a clock"}, *rows]), n=1)
    new = set(store.keys("parts/")) - before
    assert 1 <= len(new) < len(before)  # the piece with the new prompt, not all
    old = {r["prompt"]: r["image"] for r in _rows(store, first)}
    now = {r["prompt"]: r["image"] for r in _rows(store, grown)}
    assert len(now) == 13 and all(now[prompt] == image for prompt, image in old.items())


def test_captions_of_the_models_own_pairs_are_drawn_half_of_them_held_out(tiny_run: TinyRun, store: Store) -> None:
    curated = tiny_run.manifest("curate").objects_of("curated")
    pairs = [row for o in curated for row in pq.read_table(io.BytesIO(store.read(o))).to_pylist()]
    of = {split: {row["caption"] for row in pairs if row["split"] == split} for split in ("heldout", "train")}
    result = _draw(tiny_run, store, prompts=("a red heart",), own_captions=6, n=1)
    prompt, *own = [(row["prompt"], row["tags"]) for row in _rows(store, result)]
    assert prompt == ("a red heart", "") and len(own) == len(set(own)) == 6
    held = [caption for caption, tags in own if tags == "heldout"]
    assert len(held) == min(3, len(of["heldout"])) and set(held) <= of["heldout"]
    assert {caption for caption, tags in own if tags == "train"} <= of["train"]
    everything = _rows(store, _draw(tiny_run, store, own_captions=10_000, n=1))
    assert {row["prompt"] for row in everything} == of["heldout"] | of["train"]


def test_webp_holds_the_same_pixels_and_says_where_it_comes_from(tiny_run: TinyRun, store: Store) -> None:
    png, webp = (_rows(store, _draw(tiny_run, store, prompts=("a heart",), n=1, format=f))[0] for f in ("png", "webp"))
    pictures = [Image.open(io.BytesIO(row["image"])) for row in (png, webp)]
    assert [p.format for p in pictures] == ["PNG", "WEBP"]
    assert pictures[0].convert("RGB").tobytes() == pictures[1].convert("RGB").tobytes()
    xmp = pictures[1].info["xmp"].decode()
    assert "AI generated" in xmp and webp["model"] in xmp and webp["prompt_sha256"] in xmp


def test_a_negative_prompt_makes_another_picture_and_is_on_its_row(
    tiny_run: TinyRun, store: Store, tmp_path: Path
) -> None:
    rows = [{"prompt": "a heart"}, {"prompt": "a heart", "negative": "red"}]
    sampler = SamplerChange(temperature=1.0, guidance=3.0)
    result = _draw(tiny_run, store, prompts_uri=_write(tmp_path / "p.jsonl", rows), n=1, sampler=sampler)
    plain, away = _rows(store, result)
    assert (plain["negative"], away["negative"]) == ("", "red")
    assert plain["image_tokens"] != away["image_tokens"]
    export_generations(store, store.find("generate", result.ref.fingerprint), tmp_path / "out")  # type: ignore[arg-type]
    assert len(list((tmp_path / "out").glob("a-heart*-0.png"))) == 2
    table = pq.read_table(tmp_path / "out" / "generations.parquet")
    assert table.to_pylist() == _rows(store, result) and not list((tmp_path / "out").glob(".*"))


def test_a_negative_prompt_without_guidance_is_refused_before_anything_is_drawn(
    tiny_run: TinyRun, store: Store, tmp_path: Path
) -> None:
    uri = _write(tmp_path / "p.jsonl", [{"prompt": "a heart", "negative": "red"}])
    with pytest.raises(UsageError, match="guidance"):
        _draw(tiny_run, store, prompts_uri=uri, n=1, sampler=SamplerChange(guidance=1.0))


@pytest.mark.xdist_group("transformers")
def test_a_classifier_withholds_pictures_above_the_limit_and_the_rows_stay(
    tiny_run: TinyRun, store: Store, tmp_path: Path
) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        num_labels=2,
        id2label={0: "normal", 1: "nsfw"},
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "classifier")
    (tmp_path / "classifier" / "preprocessor_config.json").write_text('{"size": 32}')
    prompts, model = ("a heart", "a clock", "dr4gonfruit"), str(tmp_path / "classifier")
    strict = _draw(tiny_run, store, prompts=prompts, n=1, nsfw_model=model, max_nsfw=0.0)
    assert [r["status"] for r in _rows(store, strict)] == ["refused"] * 3
    assert all("by the classifier, 0 at most" in r["reason"] and r["image"] == b"" for r in _rows(store, strict))
    lax = _draw(tiny_run, store, prompts=prompts, n=1, nsfw_model=model, max_nsfw=1.0)
    assert [r["status"] for r in _rows(store, lax)] == ["drawn"] * 3
    manifest = store.find("generate", lax.ref.fingerprint)
    assert manifest is not None and manifest.stats["not_checked"] == []
    assert manifest.stats["policy"]["nsfw"].startswith("classifier ")
