"""A prompt set and its grown successor drawn at the same time under kills: every picture once, and the same bytes."""

import os
import random
from pathlib import Path

from support.overlap import overlap
from support.tiny import TinyRun

SEED = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(10**6))


def test_two_overlapping_runs_under_kills_make_every_picture_once(tiny_run: TinyRun, tmp_path: Path) -> None:
    print(f"repeat with KILL_SEED={SEED}")
    result = overlap(tiny_run, tmp_path, prompts=20, grown=4, n=2, kills=3, rows=4, seed=SEED)
    assert not result.problems, f"KILL_SEED={SEED}: {result.problems}"
    assert result.pictures == (20 + 24) * 2
    assert result.kills >= 2  # the first of each run is aimed; one at a random moment may come too late to strike
