"""Exactly once: ``python tests/faults/exactly_once.py [--prompts 1000] [--n 1] [--kills 50] [--seed N]``.

Draws a prompt set and a grown one in two overlapping runs, kills them again and again, and compares every picture with
an undisturbed run. Prints one line ``generate.exactly_once measured goal PASS|FAIL`` with the seed that repeats it.
"""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.overlap import overlap
from support.tiny import run_once


def main() -> int:
    """Run it; exit code 1 after a FAIL."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, default in (("prompts", 1000), ("n", 1), ("kills", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    os.environ["DALLE_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="dalle-once-") as name:
        folder = Path(name)
        os.environ["DALLE_SPOOL"] = str(folder / "spool")
        tiny = run_once(folder / "tiny")
        grown = asked.prompts // 20
        result = overlap(
            tiny, folder, prompts=asked.prompts, grown=grown, n=asked.n, kills=asked.kills, rows=2, seed=asked.seed
        )
    wanted = (2 * asked.prompts + grown) * asked.n
    passed = not result.problems and result.kills >= asked.kills and result.pictures == wanted
    print(
        f"generate.exactly_once {result.pictures}-pictures-{result.kills}-kills-{len(result.problems)}-wrong "
        f"{wanted}-pictures-{asked.kills}-kills-0-wrong {'PASS' if passed else 'FAIL'} seed={asked.seed}"
    )
    for problem in result.problems:
        print(f"  {problem}")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
