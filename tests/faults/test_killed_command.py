"""``dalle run`` under Prefect, terminated and then killed with -9: nothing stays behind, and the same command goes on."""

import json
import signal
import subprocess
import uuid
from pathlib import Path

import psutil
from support.processes import DALLE, marked, marked_environment, send, wait_for
from support.tiny import TinyRun, command_sets

from tasks.store import Store


def test_a_stopped_and_killed_prefect_run_leaves_no_process_and_goes_on(tiny_run: TinyRun, tmp_path: Path) -> None:
    store = tiny_run.copy(tmp_path / "artifacts", before="fit")
    sets = command_sets("train.steps=12", "train.checkpoint_every=3", "train.sample_every=0")
    command = [*DALLE, "run", "tiny", "--store", str(store), "--out", str(tmp_path / "out"), "--json", *sets]
    mark = uuid.uuid4().hex
    env = marked_environment(mark, DALLE_SPOOL=str(tmp_path / "spool"))

    def receipts() -> int:
        return len(list((store / "parts").glob("*/*.json")))

    def newest() -> str:
        return max((p.name for p in (store / "parts").glob("*/*.json")), default="")

    for number, code in ((signal.SIGTERM, 130), (signal.SIGKILL, -9)):
        before = newest()
        # Training waits after its first checkpoint, so that the signal finds it at work.
        waiting = env | {"DALLE_FAULT": "checkpoint.after_receipt:1:wait"}
        process = subprocess.Popen(
            command, env=waiting, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert wait_for(lambda before=before, p=process: newest() > before or p.poll() is not None, 240), (
            "fit saved no checkpoint"
        )
        send(psutil.Process(process.pid), number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == code, said
        # Workers look for their parent twice a second, the temporary server too; then it has ten seconds to end.
        assert wait_for(lambda: not marked(mark), 40), f"left behind: {marked(mark)}"
    assert receipts() > 0
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert "goes on from the checkpoint at step" in again.stderr
    artifacts = json.loads(again.stdout.splitlines()[-1])["artifacts"]
    assert [stage for stage, entry in artifacts.items() if not entry["reused"]] == ["fit", "evaluate", "generate"]
    assert len(Store.open(store).artifacts()) == len(artifacts)
    assert list((tmp_path / "spool").iterdir()) == []
    assert wait_for(lambda: not marked(mark), 20), marked(mark)
