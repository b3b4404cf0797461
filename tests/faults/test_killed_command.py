"""``dalle run`` under Prefect, killed with -9 in the middle: nothing stays behind, and the same command goes on."""

import json
import signal
import subprocess
import uuid
from pathlib import Path

import psutil
from support.processes import DALLE, marked, marked_environment, send, wait_for
from support.tiny import TinyRun, command_sets

from tasks.store import Store


def test_a_killed_prefect_run_leaves_no_process_and_goes_on(tiny_run: TinyRun, tmp_path: Path) -> None:
    store = tiny_run.copy(tmp_path / "artifacts", before="fit")
    command = [*DALLE, "run", "tiny", "--store", str(store), "--out", str(tmp_path / "out"), "--json", *command_sets()]
    mark = uuid.uuid4().hex
    env = marked_environment(mark, DALLE_SPOOL=str(tmp_path / "spool"))
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    receipts = store / "parts" / tiny_run.results["fit"].ref.fingerprint
    assert wait_for(lambda: list(receipts.glob("*.json")) or process.poll() is not None, 240), "fit saved no checkpoint"
    assert process.poll() is None, "the run ended before it was killed"
    send(psutil.Process(process.pid), signal.SIGKILL)
    process.wait()
    # The worker looks for its parent twice a second, the temporary server too; then it has ten seconds to end.
    assert wait_for(lambda: not marked(mark), 40), f"left behind: {marked(mark)}"
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    artifacts = json.loads(again.stdout.splitlines()[-1])["artifacts"]
    made = {stage: entry["manifest_sha256"] for stage, entry in artifacts.items()}
    assert made == {stage: result.ref.manifest_sha256 for stage, result in tiny_run.results.items()}
    assert len(Store.open(store).artifacts()) == len(made)
    assert list((tmp_path / "spool").iterdir()) == []
    assert wait_for(lambda: not marked(mark), 20), marked(mark)
