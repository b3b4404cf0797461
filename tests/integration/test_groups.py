"""One stage shared out in groups of shards: whoever makes what in which order, the artifact is the undisturbed one."""

import importlib.util
import json
import subprocess
import uuid
from pathlib import Path

import pytest
from support.processes import DALLE, marked, marked_environment, wait_for
from support.tiny import TinyRun, command_sets, section_of

from dalle_model.errors import StepFailed
from tasks.groups import groups_of, run_pieces
from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import plan, run_step
from tasks.store import Store


@pytest.mark.parametrize("stage", ["ingest", "encode"])
def test_groups_made_in_any_order_and_killed_give_the_manifest_of_one_process(
    stage: str, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tiny_run.copy(tmp_path / "artifacts", before=stage)
    settings = Settings(store=str(store), spool=tmp_path / "spool", shard_groups=2)
    config, inputs = section_of(stage, tiny_run.config), tiny_run.inputs(stage)
    fingerprint = plan(STAGES[stage], config, inputs, settings).fingerprint
    groups = groups_of(STAGES[stage], config, inputs, settings)
    assert groups == [(0, 1), (1, 3)]
    with monkeypatch.context() as patch:
        patch.setenv("DALLE_FAULT", "part.after_receipt")
        with pytest.raises(StepFailed):
            run_pieces(STAGES[stage], config, inputs, settings, groups[1])
    assert list(Store.open(store).parts(fingerprint)) == [1], "it died after its first piece"
    run_pieces(STAGES[stage], config, inputs, settings, groups[1])
    assert sorted(Store.open(store).parts(fingerprint)) == [1, 2]
    assert Store.open(store).find(stage, fingerprint) is None, "pieces are no artifact"
    result = run_step(STAGES[stage], config, inputs, settings)
    assert result.ref.manifest_sha256 == tiny_run.results[stage].ref.manifest_sha256
    assert groups_of(STAGES[stage], config, inputs, settings) == [], "nothing is shared out that is there"


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("runner", ["", "dask"])
def test_the_same_flow_over_two_dask_workers_gives_the_same_manifests(
    runner: str, tiny_run: TinyRun, tmp_path: Path
) -> None:
    assert not runner or importlib.util.find_spec("prefect_dask"), (
        "install the extra: pip install 'dalle-prefect[dask]'"
    )
    mark = uuid.uuid4().hex
    env = marked_environment(
        mark, DALLE_SPOOL=str(tmp_path / "spool"), DALLE_SHARD_GROUPS="2", DALLE_TASK_RUNNER=runner
    )
    words = [
        "run",
        "tiny",
        "--store",
        str(tmp_path / "artifacts"),
        "--out",
        str(tmp_path / "out"),
        "--json",
        *command_sets(),
    ]
    ended = subprocess.run([*DALLE, *words], env=env, capture_output=True, text=True, timeout=550)
    assert ended.returncode == 0, ended.stderr
    made = json.loads(ended.stdout.splitlines()[-1])["artifacts"]
    wanted = {stage: r.ref.manifest_sha256 for stage, r in tiny_run.results.items()}
    assert {stage: entry["manifest_sha256"] for stage, entry in made.items()} == wanted
    log = ended.stderr
    assert wait_for(lambda: not marked(mark), 120), f"processes are left: {marked(mark)}; {log[-500:]}"
