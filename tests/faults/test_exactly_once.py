"""A prompt set and its grown successor drawn at the same time under kills: every picture once, and the same bytes."""

import os
from pathlib import Path

from support.overlap import overlap
from support.tiny import TinyRun

SEED = int(os.environ.get("KILL_SEED", "0"))  # exactly_once.py tries any


def test_two_overlapping_runs_under_kills_make_every_picture_once(tiny_run: TinyRun, tmp_path: Path) -> None:
    result = overlap(tiny_run, tmp_path, prompts=20, grown=4, n=2, kills=3, rows=4, seed=SEED)
    assert not result.problems, f"KILL_SEED={SEED}: {result.problems}"
    assert result.pictures == (20 + 24) * 2
    assert result.kills >= 2  # the first of each run; a later one may come too late to strike
