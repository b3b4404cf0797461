"""The generators without prompts go through the same generate and evaluate steps as the transformer."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.processes import Driver
from support.tiny import TinyRun, quietly, tiny_config

from dalle_model.config import PipelineConfig, SamplerChange
from dalle_model.errors import DataError
from dalle_model.images import to_uint8
from dalle_model.runtime import Runtime
from flows.pipeline import chain
from tasks.artifacts import Manifest, ObjectRef
from tasks.comparison import compare, comparison_page
from tasks.drawing import load_painter
from tasks.plain import bind
from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import StepResult
from tasks.store import Store

pytestmark = [pytest.mark.usefixtures("steps_here"), pytest.mark.xdist_group("families")]

SETS = ("generator.steps=6", "generator.checkpoint_every=2", "generator.batch_size=8", "generate.n=3", "evaluate.num_captions=12")  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A whole run of one family, on the pairs of the tiny run."""

    config: PipelineConfig
    settings: Settings
    results: dict[str, StepResult]

    def manifest(self, stage: str) -> Manifest:
        """What a stage committed."""
        ref = self.results[stage].ref
        found = Store.open(self.settings.store).find(ref.step, ref.fingerprint)
        assert found is not None
        return found

    def read(self, stage: str, role: str) -> bytes:
        """One object of it."""
        return Store.open(self.settings.store).read(self.manifest(stage).object_of(role))


@pytest.fixture(scope="module", params=["vae", "gan"])
def family(request: pytest.FixtureRequest, tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Family:
    config = tiny_config(f"family={request.param}", 'generate.prompts=["", "a red heart"]', *SETS)
    folder = tiny_run.copy(tmp_path_factory.mktemp(request.param) / "artifacts", before="fit-tokenizer")
    settings = Settings(store=str(folder))
    return Family(config, settings, chain(config, settings, bind(quietly)))


def test_chain_of_a_family_skips_what_it_has_no_use_for(family: Family) -> None:
    assert list(family.results) == ["ingest", "curate", "fit-generator", "evaluate", "generate"]
    assert family.results["curate"].reused
    model = family.manifest("fit-generator")
    assert model.kind == "model" and model.stats["family"] == family.config.family == family.config.generator.kind
    assert {o.role for o in model.objects} >= {"weights", "config", "curve", "sheet.samples"}


def test_pictures_do_not_depend_on_how_many_are_drawn_with_them(family: Family) -> None:
    rows = [r for o in family.manifest("generate").objects_of("generations") for r in _rows(family, o)]
    assert len(rows) == 6 and {r["status"] for r in rows} == {"drawn"}
    assert all(r["image_tokens"] == [] for r in rows)
    assert len({r["image"] for r in rows}) == 6
    painter = load_painter(_FakeJob(family), family.manifest("fit-generator"), SamplerChange(), 0)  # type: ignore[arg-type]
    alone = to_uint8(painter.pictures(painter.tokens([painter.request("", 0, 2)], 1)))[0]
    same = next(r for r in rows if r["prompt"] == "" and r["index"] == 2)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(same["image"]))), alone)


def _rows(family: Family, obj: ObjectRef) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(Store.open(family.settings.store).read(obj))).to_pylist()
    return rows


def test_evaluation_measures_the_sets_and_says_what_has_no_meaning(family: Family) -> None:
    document = json.loads(family.read("evaluate", "metrics"))
    assert {"frechet_random", "sliced_wasserstein_random", "variety_of_drawings", "copied"} <= set(document["metrics"])
    assert "recognisability" not in document["metrics"]
    assert "recognisability" in document["protocol"]["not_applicable"]
    assert ("bits_per_pixel_train" in document["metrics"]) == (family.config.family == "vae")
    if family.config.family == "vae":
        splits = family.manifest("curate").stats["splits"]
        on = {"psnr_train": splits["train"], "psnr_valid": splits["valid"] + splits["test"]}
        told = {name: document["records"][name]["n"] for name in on if name in document["records"]}
        assert told == {name: n for name, n in on.items() if n}
    page = family.read("evaluate", "report").decode()
    assert "reads no prompt" in page and "Not measured" in page


def test_two_models_without_prompts_are_compared_and_nothing_decides(family: Family) -> None:
    """The page ended with: has 0 objects of role 'drawings'."""
    store, evaluation = Store.open(family.settings.store), family.manifest("evaluate")
    told = compare(store, evaluation, evaluation)
    assert told.sentence == "no difference shown: no figure that decides was measured for both"
    assert b"no figure that decides" in comparison_page(store, told, evaluation, evaluation)


def test_killed_training_of_two_networks_goes_on_to_the_same_bytes(
    family: Family, tiny_run: TinyRun, tmp_path: Path
) -> None:
    if family.config.family == "vae":
        return  # one network: tests/faults/test_training_resume.py
    folder = tiny_run.copy(tmp_path / "artifacts", before="fit-tokenizer")
    inputs = {"curated": family.results["curate"].ref}
    places = {"store": str(folder), "spool": str(tmp_path / "spool")}
    driver = Driver("fit-generator", family.config.generator, inputs, places)
    code, _, err = driver.start(DALLE_FAULT="checkpoint.after_receipt").wait()
    assert code == 1 and "was killed by signal 9" in err
    answer = driver.start().finish()
    assert "goes on from the checkpoint at step 2 of 6" in answer["log"]
    want = family.manifest("fit-generator")
    made = Store.open(folder).find("fit-generator", want.fingerprint)
    assert made is not None and made.sha256 == want.sha256


def test_a_call_that_needs_a_transformer_says_so(family: Family) -> None:
    painter = load_painter(_FakeJob(family), family.manifest("fit-generator"), SamplerChange(), 0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has no image tokenizer"):
        _ = painter.tokenizer
    assert painter.words.encode("anything") == [] and not painter.reads_prompts


def test_a_dvae_may_begin_with_weights_scaled_on_its_own_pictures(tiny_run: TinyRun, tmp_path: Path) -> None:
    settings = Settings(store=str(tiny_run.copy(tmp_path / "artifacts", before="fit-tokenizer")))
    tokenizer = tiny_config().tokenizer
    optim = tokenizer.optim.model_copy(update={"steps": 1, "lr": 1e-9})  # next to nothing is learnt
    changes = {"kind": "dvae", "num_codes": 64, "min_perplexity_share": 0.0, "optim": optim}
    perplexity = []
    for start in ("paper", "data"):
        config = tokenizer.model_copy(update={**changes, "start": start})
        result = quietly(STAGES["fit-tokenizer"])(config, settings, curated=tiny_run.results["curate"].ref)
        made = Store.open(settings.store).find(result.ref.step, result.ref.fingerprint)
        assert made is not None
        perplexity.append(made.stats["code_perplexity"])
    assert perplexity[1] > 2 * perplexity[0]


class _FakeJob:
    """What loading a painter asks of a job."""

    def __init__(self, family: Family) -> None:
        self.runtime = Runtime()
        self._store = Store.open(family.settings.store)
        self.read = self._store.read
