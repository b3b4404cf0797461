"""The chain gives the same artifacts whichever way it is run: plainly, by Prefect tasks, with one worker or four."""

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from support.processes import DALLE, marked, marked_environment, wait_for
from support.tiny import ORDER, TinyRun, chain, command_sets, section_of, tiny_config

from dalle_model.config import Section
from tasks.artifacts import ArtifactRef
from tasks.plain import Step, bind
from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import Stage, StepResult, run_step


def same_artifacts(payload: dict[str, Any], tiny: TinyRun) -> None:
    """Every stage has the fingerprint and the manifest of the undisturbed plain run."""
    made = {stage: (entry["fingerprint"], entry["manifest_sha256"]) for stage, entry in payload["artifacts"].items()}
    assert made == {stage: (r.ref.fingerprint, r.ref.manifest_sha256) for stage, r in tiny.results.items()}


def test_the_undisturbed_run_made_all_seven_kinds_and_counts_add_up(tiny_run: TinyRun) -> None:
    assert [tiny_run.manifest(stage).kind for stage in ORDER] == [
        "pairs",
        "curated",
        "tokenizer",
        "tokens",
        "model",
        "evaluation",
        "generations",
    ]
    for stage in ORDER:
        manifest = tiny_run.manifest(stage)
        assert tiny_run.store.verify(manifest) == []
        assert tuple(i.name for i in manifest.inputs) == STAGES[stage].inputs
        assert {i.fingerprint for i in manifest.inputs} <= {r.ref.fingerprint for r in tiny_run.results.values()}
    pairs, curated = tiny_run.manifest("ingest"), tiny_run.manifest("curate")
    assert pairs.stats["rows_in"] == pairs.stats["kept"] + pairs.stats["rejected"] == 96
    ledger = curated.objects_of("ledger")
    assert sum(o.rows for o in ledger) == pairs.rows
    assert tiny_run.manifest("encode").rows == curated.rows
    assert len([p for p in tiny_run.store.keys("manifests/")]) == len(ORDER)


def test_only_small_references_cross_a_task_boundary(tiny_run: TinyRun) -> None:
    for result in tiny_run.results.values():
        assert len(result.model_dump_json()) < 1000


@pytest.mark.slow  # by default a deployment does, with all stages (test_prefect_runs)
def test_prefect_tasks_make_what_plain_functions_make(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Prefect's temporary server and tasks, for what is left to do in a copy of the plain run's store."""
    store = tiny_run.copy(tmp_path / "artifacts", before="evaluate")
    words = ["run", "tiny", "--store", str(store), "--out", str(tmp_path / "out"), "--json", *command_sets()]
    mark = uuid.uuid4().hex
    ended = subprocess.run(
        [*DALLE, *words],
        env=marked_environment(mark, DALLE_SPOOL=str(tmp_path / "spool")),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr
    payload = json.loads(ended.stdout.splitlines()[-1])
    same_artifacts(payload, tiny_run)
    assert [stage for stage, entry in payload["artifacts"].items() if not entry["reused"]] == ["evaluate", "generate"]
    assert wait_for(lambda: not marked(mark), 120), "the temporary server ends with the command"
    assert list((tmp_path / "spool").iterdir()) == []


def test_the_chain_of_the_tests_is_the_chain_of_the_product(tiny_run: TinyRun) -> None:
    from flows.pipeline import chain as product  # imports Prefect, which costs seconds

    def record(calls: list[tuple[str, Section, dict[str, str]]]) -> Any:
        def way(stage: Stage) -> Step:
            def run(config: Section, settings: Settings, **inputs: ArtifactRef) -> StepResult:
                calls.append((stage.name, config, {name: ref.step for name, ref in inputs.items()}))
                return tiny_run.results[stage.name]

            return run

        return bind(way)

    ours: list[Any] = []
    theirs: list[Any] = []
    chain(tiny_run.config, Settings(), record(ours))
    product(tiny_run.config, Settings(), record(theirs))
    assert ours == theirs and len(ours) == len(ORDER)


@pytest.mark.usefixtures("steps_here")
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("stage", ["ingest", "curate"])
def test_the_number_of_workers_changes_nothing(stage: str, workers: int, tiny_run: TinyRun, tmp_path: Path) -> None:
    store = tiny_run.copy(tmp_path / "artifacts", before=stage)
    settings = Settings(store=str(store), spool=tmp_path / "spool", workers=workers)
    result = run_step(STAGES[stage], section_of(stage, tiny_run.config), tiny_run.inputs(stage), settings)
    assert result.ref.manifest_sha256 == tiny_run.results[stage].ref.manifest_sha256
    assert not result.reused


@pytest.mark.usefixtures("steps_here")
def test_batch_and_shard_sizes_of_drawing_do_not_change_the_pictures(tiny_run: TinyRun, tmp_path: Path) -> None:
    """The same prompt drawn in another batch, beside other prompts, is the same picture."""
    import io

    import pyarrow.parquet as pq

    store = tiny_run.copy(tmp_path / "artifacts")
    config = tiny_config(
        "generate.batch_size=3",
        "generate.rows_per_shard=5",
        'generate.prompts=["a cat", "clown face", "red heart"]',
        "generate.n=3",
    )
    result = run_step(
        STAGES["generate"],
        config.generate,
        tiny_run.inputs("generate"),
        Settings(store=str(store), spool=tmp_path / "spool"),
    )

    def pictures(manifest: Any, store: Any) -> dict[tuple[str, int], bytes]:
        rows = [
            row
            for o in manifest.objects_of("generations")
            for row in pq.read_table(io.BytesIO(store.read(o))).to_pylist()
        ]
        return {(row["prompt"], row["index"]): row["image"] for row in rows}

    before = pictures(tiny_run.manifest("generate"), tiny_run.store)
    from tasks.store import Store

    other = Store.open(store)
    found = other.find("generate", result.ref.fingerprint)
    assert found is not None
    after = pictures(found, other)
    assert len(after) == 9 and {key: after[key] for key in before} == before
