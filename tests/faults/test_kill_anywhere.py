"""SIGKILL at random and at aimed moments, restart until done: every manifest equals that of an undisturbed run."""

import os
import random
from pathlib import Path

import pytest
from support.kills import kill_stage
from support.tiny import ORDER, TinyRun

SEED = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(10**6))


@pytest.mark.parametrize("stage", ORDER)
def test_a_stage_killed_five_times_makes_the_same_artifact(stage: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    print(f"repeat with KILL_SEED={SEED}")
    tally = kill_stage(tiny_run, stage, tmp_path, kills=5, seed=SEED)
    print(tally.line(goal=5))
    assert not tally.problems, f"KILL_SEED={SEED}: {tally.problems}"
    assert tally.kills >= 5
