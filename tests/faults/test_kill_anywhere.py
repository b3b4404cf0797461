"""SIGKILL at random and at aimed moments, restart until done: every manifest equals that of an undisturbed run."""

import os
from pathlib import Path

import pytest
from support.kills import kill_stage
from support.tiny import ORDER, TinyRun

SEED = int(os.environ.get("KILL_SEED", "0"))  # kill_many.py tries any


# The default run kills the other stages elsewhere: test_bad_input, test_training_resume, test_exactly_once.
BY_DEFAULT = ("curate", "encode")


@pytest.mark.parametrize(
    ("stage", "kills"),
    [(stage, 2) for stage in BY_DEFAULT] + [pytest.param(stage, 20, marks=pytest.mark.slow) for stage in ORDER],
)
def test_a_stage_killed_again_and_again_makes_the_same_artifact(
    stage: str, kills: int, tiny_run: TinyRun, tmp_path: Path
) -> None:
    tally = kill_stage(tiny_run, stage, tmp_path, kills=kills, seed=SEED)
    print(tally.line(goal=kills))
    assert not tally.problems, f"KILL_SEED={SEED}: {tally.problems}"
    assert tally.kills >= kills
