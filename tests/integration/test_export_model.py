"""A model artifact leaves the store as a folder or under an address, with a card that tells where it came from."""

import io
import json
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.commands import dalle
from support.object_stores import any_store
from support.tiny import TinyRun, quietly

from dalle_model.config import GenerateConfig, SamplerChange, SamplerConfig
from dalle_model.errors import DataError, SourceError
from dalle_model.pretrained import CARD, FILES
from dalle_model.studio import Studio
from dalle_model.text_to_image import TextToImage
from tasks import export_model
from tasks.devices import DevicePolicy, resolve
from tasks.export_model import fetch_model, text_to_image, upload
from tasks.settings import Settings
from tasks.stages import GENERATE
from tasks.step import load_dotted
from tasks.store import Store

pytestmark = pytest.mark.usefixtures("steps_here")


def test_export_writes_a_model_that_draws_and_says_what_it_was_made_from(tiny_run: TinyRun, tmp_path: Path) -> None:
    model = tiny_run.manifest("fit")
    words = ("export", model.fingerprint[:12], str(tmp_path / "model"), "--store", str(tiny_run.folder))
    said = dalle(*words, "--json")
    assert said.code == 0, said.err
    assert said.payload["files"] == len(FILES) + 2
    made = TextToImage.from_pretrained(tmp_path / "model")
    assert made.fingerprint == text_to_image(tiny_run.store, model).fingerprint
    assert made.draw(["red heart"]).shape == (1, 1, 32, 32, 3)
    card = (tmp_path / "model" / CARD).read_text()
    for stage in ("ingest", "curate", "fit-tokenizer", "encode", "fit", "evaluate"):
        assert tiny_run.manifest(stage).fingerprint in card, stage
    metrics = tiny_run.manifest("evaluate").stats
    value, low, high = (metrics[f"recognisability{end}"] for end in ("", "_low", "_high"))
    assert f"| recognisability | {value:.4g} [{low:.4g}, {high:.4g}] |" in card and "recognisability_low" not in card
    assert "| Source | openmoji |" in card and "| Licence CC-BY-SA-4.0 | 96 |" in card
    settings = json.loads(card.split("```json")[1].split("```")[0])
    assert settings["fit"] == model.config["config"] and settings["ingest"]["source"] == "openmoji"
    again = dalle(*words)
    assert again.code == 2 and "not empty" in again.error
    wrong = dalle("export", tiny_run.manifest("encode").fingerprint, str(tmp_path / "other"), *words[3:])
    assert wrong.code == 1 and "is of kind tokens" in wrong.error


def test_store_folder_and_studio_draw_equal_pictures(tiny_run: TinyRun, tmp_path: Path) -> None:
    """The same prompt and seed, drawn by the step, by the exported folder and one at a time."""
    settings = Settings(store=str(tiny_run.copy(tmp_path / "artifacts", before="generate")))
    section = GenerateConfig(prompts=("a red heart",), n=3, seed=4, sampler=SamplerChange(temperature=1.0))
    result = quietly(GENERATE)(section, settings, **tiny_run.inputs("generate"))
    store, prompt = Store.open(settings.store), "a red heart"
    drawn = store.find("generate", result.ref.fingerprint)
    assert drawn is not None
    rows = pq.read_table(io.BytesIO(store.read(drawn.object_of("generations")))).to_pylist()
    stepped = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]))) for row in rows])
    assert len(np.unique(stepped.reshape(3, -1), axis=0)) == 3  # the noise decides
    export_model.export_model(store, tiny_run.manifest("fit"), str(tmp_path / "model"), settings)
    model = TextToImage.from_pretrained(tmp_path / "model")
    runtime = resolve(DevicePolicy(device=settings.device, dtype=settings.dtype, threads=settings.threads or 1))
    sampler = SamplerConfig(**json.loads(rows[0]["sampler"]))
    assert sampler == model.sampler.model_copy(update={"temperature": 1.0})
    assert np.array_equal(model.draw([prompt], n=3, seed=4, sampler=sampler, runtime=runtime)[0], stepped)
    assert np.array_equal(Studio(model, runtime, sampler).draw(prompt, n=3, seed=4), stepped)


def test_a_model_goes_to_a_bucket_and_comes_back(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = any_store("moto", tmp_path)
    options = bucket.options
    for name, value in {
        "AWS_ACCESS_KEY_ID": options.key.get_secret_value(),
        "AWS_SECRET_ACCESS_KEY": options.secret.get_secret_value(),
        "DALLE_ENDPOINT_URL": options.endpoint_url,
        "DALLE_SPOOL": str(tmp_path / "spool"),
    }.items():
        monkeypatch.setenv(name, value)
    place = f"{bucket.uri}/models/tiny"
    with pytest.raises(SourceError, match=r"holds no model_index\.json"):
        fetch_model(place)
    store, manifest = tiny_run.store, tiny_run.manifest("fit")
    wrote = export_model.export_model(store, manifest, place, Settings())
    assert wrote["files"] == len(FILES) + 2
    first = fetch_model(place)
    assert TextToImage.from_pretrained(first).fingerprint == text_to_image(store, manifest).fingerprint
    assert fetch_model(place) == first
    sampler = first / "sampler.json"
    sampler.write_text(sampler.read_text() + " ")  # what the index does not name, as after damage on the way
    upload(first, place, Settings())
    monkeypatch.setenv("DALLE_SPOOL", str(tmp_path / "elsewhere" / "spool"))
    with pytest.raises(DataError, match="sampler"):
        fetch_model(place)
    assert list((tmp_path / "elsewhere" / "models").iterdir()) == []


def test_the_library_finds_the_fetcher_by_its_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert load_dotted(project["project"]["entry-points"]["dalle_model.fetchers"]["s3"]) is fetch_model
