"""Two models on one store: compared in pairs, gated before promotion, and their figures computed again."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.commands import dalle
from support.tiny import TinyRun, command_sets, quietly, tiny_config

from dalle_model.config import CurateConfig
from dalle_model.errors import DataError, PromotionRefused, UsageError
from flows import cross_validation
from flows.comparison import offer, promote, reproduce_figures
from flows.compression import compress
from flows.cross_validation import summarise
from tasks.comparison import compare
from tasks.evaluation_card import evaluation_card
from tasks.findings import values_of
from tasks.plain import bind
from tasks.settings import Settings
from tasks.store import Store

pytestmark = [pytest.mark.usefixtures("steps_here"), pytest.mark.xdist_group("evaluation")]

MANY = ("curate.valid_share=0.25", "evaluate.num_captions=24", "evaluate.num_heldout=8", "evaluate.num_unseen=32")


@pytest.fixture(scope="module")
def two(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """(store, a model of 9 updates, one of 50 on the same tokens), both evaluated."""
    store = str(tiny_run.copy(tmp_path_factory.mktemp("two") / "artifacts"))
    settings = Settings(store=store)
    do, config = bind(quietly), tiny_config(*MANY)
    pairs = tiny_run.results["ingest"].ref
    curated = do.curate(config.curate, settings, pairs=pairs).ref
    tokenizer = do.fit_tokenizer(config.tokenizer, settings, curated=curated).ref
    tokens = do.encode(config.encode, settings, curated=curated, tokenizer=tokenizer).ref
    fits = (config.fit, tiny_config(*MANY, "train.steps=50", "train.batch_size=16").fit)
    models = [do.fit(fit, settings, tokens=tokens).ref for fit in fits]
    for model in models:
        do.evaluate(config.evaluate, settings, model=model)
    return store, models[0].fingerprint, models[1].fingerprint


def evaluations(store: str, *models: str) -> list[str]:
    """The models' evaluations that neither repeat nor compare, in the order of the models."""
    opened = Store.open(store)
    made = [m for known in opened.artifacts() if known.step == "evaluate" if (m := opened.find(*known))]
    found = {
        m.inputs[0].fingerprint: m.fingerprint
        for m in made
        if not m.config["outside"] and not m.config["config"]["baseline"]
    }
    return [found[model] for model in models]


def test_a_cell_of_an_evaluation_is_never_too_long_for_a_ui_that_breaks_none(tiny_run: TinyRun) -> None:
    """The older UI: 728 px of text in a window of 1,300 px, about 7 px a letter and 24 px around each cell."""
    markdown = evaluation_card(tiny_run.manifest("evaluate"), tiny_run.store, "made").markdown
    lines = [line.replace("\\", "") for line in markdown.splitlines() if line.startswith("|") and "---" not in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len([row for row in cells if len(row) == 4]) > 40, "figures"
    for row in cells:
        assert sum(7 * len(cell) + 24 for cell in row) < 728, row


def test_the_model_trained_longer_is_better_and_says_on_what(two: tuple[str, str, str], tmp_path: Path) -> None:
    store, short, longer = two
    said = dalle("compare", short, longer, "--store", store, "--preset", "tiny", "--out", str(tmp_path), "--json", *command_sets(*MANY))  # fmt: skip
    assert said.code == 0, said
    assert said.payload["overall"] == "better"
    bits = said.payload["figures"]["bits_per_pixel_train"]
    assert bits["second"] < bits["first"] and bits["high"] < 0 and bits["verdict"] == "better"
    assert [said.payload["first"], said.payload["second"]] == evaluations(store, short, longer)
    page = Path(said.payload["page"]).read_text()
    assert "Better than the last?" in page and "Where they differ most" in page and "http://" not in page
    back = dalle("compare", *evaluations(store, longer, short), "--store", store, "--out", str(tmp_path), "--json")
    assert back.payload["overall"] == "worse"


def test_production_changes_hands_for_a_better_model_only(two: tuple[str, str, str]) -> None:
    store, short, longer = two
    settings = Settings(store=store)
    assert promote(settings, short, "production", force=False)[0] == {"name": "production", "fingerprint": short}
    payload, lines = promote(settings, longer, "production", force=False)
    assert payload["gate"]["overall"] == "better" and "won over" in lines[-1]
    with pytest.raises(PromotionRefused, match=r"not better than production.*worse: .*--force"):
        promote(settings, short, "production", force=False)
    assert "not better than production" in offer(settings, Store.open(store).resolve(short).ref(""))
    assert Store.open(store).resolve("production").fingerprint == longer
    assert promote(settings, short, "best", force=False)[0]["fingerprint"] == short, "other names are free"
    assert promote(settings, "latest", "newest", force=False)[0]["fingerprint"] in (short, longer)
    payload, _ = promote(settings, short, "production", force=True)
    held = Store.open(store).read_ref("production")
    assert payload["forced"] and held is not None and held.fingerprint == short
    assert [target.note.split()[0] for target in held.history[1:]] == ["won", "forced"]


def test_every_figure_comes_out_again_to_the_last_digit(two: tuple[str, str, str]) -> None:
    store, _, longer = two
    (evaluation,) = evaluations(store, longer)
    payload, _, equal = reproduce_figures(Settings(store=store), evaluation)
    assert equal and payload["differing"] == [] and len(payload["figures"]) > 60
    assert all(payload["equal_objects"].values())
    assert payload["reproduction"] != evaluation
    said = dalle("evaluate", "--reproduce", f"{evaluation[:12]}:agreement", "--store", store, "--json")
    assert said.code == 0 and list(said.payload["figures"]) == ["agreement"]
    assert "features_sha256" in said.err and "came out the same to the last digit" in said.err
    with pytest.raises(UsageError, match="near: agreement"):
        reproduce_figures(Settings(store=store), f"{evaluation}:agrement")
    with pytest.raises(UsageError, match="--reproduce takes an evaluation"):
        reproduce_figures(Settings(store=store), longer)


def test_a_changed_figure_is_told_and_fails(two: tuple[str, str, str], tmp_path: Path) -> None:
    """An evaluation whose stored figure was touched up is found out."""
    store, _, longer = two
    opened = Store.open(store)
    (evaluation,) = evaluations(store, longer)
    honest = opened.find("evaluate", evaluation)
    assert honest is not None
    document = json.loads(opened.read(honest.object_of("metrics")))
    document["metrics"]["agreement"] += 1e-9
    forged = opened.put(json.dumps(document).encode(), ext="json", role="metrics")
    objects = (forged, *(o for o in honest.objects if o.role != "metrics"))
    opened.commit(honest.model_copy(update={"objects": objects, "fingerprint": "f" * 64}))
    said = dalle("evaluate", "--reproduce", "f" * 64, "--store", store, "--json")
    assert said.code == 1 and said.payload["differing"] == ["agreement"]
    Path(store, "manifests", "evaluate", f"{'f' * 64}.json").unlink()


def test_an_evaluation_against_production_compares_in_its_report(two: tuple[str, str, str], tmp_path: Path) -> None:
    store, short, longer = two
    promote(Settings(store=store), short, "production", force=True)
    words = ("--store", store, "--preset", "tiny", "--out", str(tmp_path), "--json", *command_sets(*MANY))
    said = dalle("evaluate", longer, *words)
    assert said.code == 0, said
    report = (tmp_path / "report.html").read_text()
    assert "Better than the last?" in report and "drawn before" in report
    assert said.payload["artifacts"]["evaluate"]["reused"] is False
    assert dalle("evaluate", longer, *words).payload["artifacts"]["evaluate"]["reused"] is True
    alone = dalle("evaluate", longer, "--against", "", *words)
    assert alone.payload["artifacts"]["evaluate"]["fingerprint"] == evaluations(store, longer)[0]
    assert dalle("evaluate", "--store", store).code == dalle("evaluate", longer, "--reproduce", "x").code == 2


def test_paired_values_belong_to_the_same_pairs_of_the_data(two: tuple[str, str, str]) -> None:
    store, short, longer = two
    opened = Store.open(store)
    first, second = (opened.find("evaluate", e) for e in evaluations(store, short, longer))
    assert first is not None and second is not None
    a, b = (values_of(opened.read(m.object_of("values"))) for m in (first, second))
    assert all(set(a[name]) == set(b[name]) for name in a.keys() & b.keys() - {"variety"}) and len(a) > 30
    same = compare(opened, first, first)
    assert same.overall == "no difference shown" and all(row.told.wins == row.told.losses == 0 for row in same.rows)


@pytest.mark.slow
def test_cross_validation_measures_each_fold_on_what_its_run_has_not_seen(tmp_path: Path) -> None:
    words = ("cross-validate", "tiny", "--folds", "2", "--store", str(tmp_path / "artifacts"), "--out", str(tmp_path))
    said = dalle(*words, "--json", *command_sets("curate.valid_share=0", "evaluate.num_unseen=100"))
    assert said.code == 0, said
    store = Store.open(tmp_path / "artifacts")
    seen, unseen = [], []
    for model in said.payload["models"]:
        fit = store.resolve(model)
        tokens = store.find("encode", next(i.fingerprint for i in fit.inputs if i.name == "tokens"))
        assert tokens is not None
        rows = [
            row for o in tokens.objects_of("tokens") for row in pq.read_table(io.BytesIO(store.read(o))).to_pylist()
        ]
        seen.append({row["id"] for row in rows if row["split"] == "train"})
        unseen.append({row["id"] for row in rows if row["split"] == "test"})
    assert not unseen[0] & unseen[1] and not seen[0] & unseen[0] and not seen[1] & unseen[1]
    assert unseen[0] == seen[1] and unseen[1] == seen[0]
    bits = said.payload["figures"]["bits_per_pixel_chain_test"]
    assert len(bits["folds"]) == 2 and bits["mean"] == pytest.approx(sum(bits["folds"]) / 2) and bits["sd"] > 0
    assert json.loads(Path(said.payload["file"]).read_text())["figures"] == said.payload["figures"]
    assert (
        dalle(*words, "--json", *command_sets("curate.valid_share=0", "evaluate.num_unseen=100")).payload
        == said.payload
    )


def test_a_fold_without_a_pair_is_told_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was told when its turn came, after the training of all folds before it."""
    done: list[str] = []

    def curate(config: CurateConfig, *_: Any, **__: Any) -> SimpleNamespace:
        done.append(f"curate {config.fold}")
        if config.fold == 2:
            raise DataError("fold 2 of 3 is empty")
        return SimpleNamespace(ref=None)

    def other(*_: Any, **__: Any) -> SimpleNamespace:
        done.append("other")
        return SimpleNamespace(ref=None)

    steps = SimpleNamespace(ingest=other, curate=curate, fit_tokenizer=other, encode=other, fit=other, evaluate=other)
    monkeypatch.setattr(cross_validation, "bind", lambda _: steps)
    settings = Settings(store=str(tmp_path / "artifacts"))
    with pytest.raises(DataError, match="fold 2"):
        cross_validation.cross_validate(settings, tiny_config(), 3, tmp_path / "out")
    assert done == ["other", "curate 0", "curate 1", "curate 2"]


def test_folds_are_summarised_by_mean_and_spread() -> None:
    told = summarise([{"a": 1.0, "a_low": 0.0, "b": 3.0}, {"a": 2.0, "a_low": 0.0}, {"a": 6.0}])
    assert list(told) == ["a"] and told["a"]["mean"] == 3.0
    assert told["a"]["sd"] == pytest.approx(7**0.5) and told["a"]["se"] == pytest.approx((7 / 3) ** 0.5)


def test_smaller_weights_are_accepted_or_refused_by_pairs_and_the_decision_is_kept(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    settings = Settings(store=str(tiny_run.copy(tmp_path / "artifacts", before="generate")))
    model, config = tiny_run.manifest("fit").fingerprint, tiny_config("evaluate.num_captions=12", "evaluate.num_heldout=8").evaluate  # fmt: skip
    payload, lines = compress(settings, model, config, "int8", 0.9, tmp_path / "out")
    assert payload["accepted"] and "generate.weights=int8" in payload["use"] and payload["use"] in lines[-1]
    store = Store.open(settings.store)
    kept = store.read_ref(f"int8-{model[:12]}")
    assert kept is not None and kept.current.note == payload["sentence"]
    evaluation = store.resolve(f"int8-{model[:12]}")
    assert evaluation.config["config"]["sampler"]["weights"] == "int8" and evaluation.inputs[0].fingerprint == model
    refused, _ = compress(settings, model, config, "int8", 0.01, tmp_path / "out")  # both evaluations are there
    assert not refused["accepted"] and refused["use"] == "" and "12 pairs" in refused["sentence"]
    after = store.read_ref(f"int8-{model[:12]}")
    assert after is not None and after.current.note == refused["sentence"]
