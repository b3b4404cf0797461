"""``dalle run`` under Prefect, killed with -9 and then stopped: nothing stays behind, and the same command goes on."""

import json
import os
import signal
import sqlite3
import subprocess
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from support.processes import DALLE, LONG_S, marked, marked_environment, wait_for
from support.tiny import TinyRun, command_sets

from tasks.store import Store

GOES_ON = "goes on from the checkpoint at step"


class Command:
    """The chain from its fit on, in processes that can be found."""

    def __init__(self, tiny: TinyRun, folder: Path) -> None:
        self.store = tiny.copy(folder / "artifacts", before="fit")
        self.spool = folder / "spool"
        sets = command_sets("train.steps=12", "train.checkpoint_every=3", "train.sample_every=0")
        self.words = [*DALLE, "run", "tiny", "--store", str(self.store), "--out", str(folder / "out"), "--json", *sets]
        self.mark = uuid.uuid4().hex
        self.env = marked_environment(self.mark, DALLE_SPOOL=str(self.spool))

    def newest(self) -> str:
        """The newest receipt of work that is half done."""
        return max((p.name for p in (self.store / "parts").glob("*/*.json")), default="")

    def interrupted(self, number: int, code: int) -> str:
        """What it says when a signal meets its training, which waits after the first checkpoint of this run."""
        before = self.newest()
        process = subprocess.Popen(
            self.words,
            env=self.env | {"DALLE_FAULT": "checkpoint.after_receipt:1:wait"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert wait_for(lambda: self.newest() > before or process.poll() is not None, LONG_S), "fit saved no checkpoint"
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        process.send_signal(number)
        _, said = process.communicate(timeout=LONG_S)
        assert process.returncode == code, said
        # Workers look for their parent twice a second, the temporary server too; then it has ten seconds to end.
        assert wait_for(lambda: not marked(self.mark), 200), f"left behind: {marked(self.mark)}"
        return said


@pytest.fixture
def command(tiny_run: TinyRun, tmp_path: Path) -> Command:
    return Command(tiny_run, tmp_path)


def test_a_killed_and_a_stopped_run_leave_no_process_and_the_same_command_goes_on(command: Command) -> None:
    assert GOES_ON not in command.interrupted(signal.SIGKILL, -9)
    said = command.interrupted(signal.SIGTERM, 130)
    assert f"{GOES_ON} 3" in said, said
    assert list(command.spool.iterdir()) == []
    # The killed run could not say so itself: the second command's server knew.
    with closing(sqlite3.connect(Path(os.environ["PREFECT_HOME"]) / "prefect.db")) as database:
        states = [
            row[0] for row in database.execute("select state_type from flow_run order by start_time desc limit 2")
        ]
    assert states[1] == "CRASHED", states


@pytest.mark.slow  # what goes on ends, too: by default test_kill_anywhere says so of each stage, test_chain of the run
def test_the_same_command_goes_on_to_the_end(command: Command) -> None:
    command.interrupted(signal.SIGTERM, 130)
    command.interrupted(signal.SIGKILL, -9)
    again = subprocess.run(command.words, env=command.env, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert GOES_ON in again.stderr
    artifacts = json.loads(again.stdout.splitlines()[-1])["artifacts"]
    assert [stage for stage, entry in artifacts.items() if not entry["reused"]] == ["fit", "evaluate", "generate"]
    assert len(Store.open(command.store).artifacts()) == len(artifacts)
    assert list(command.spool.iterdir()) == []
    assert wait_for(lambda: not marked(command.mark), 200), marked(command.mark)
