"""Kill every stage hundreds of times: ``python tests/faults/kill_many.py [--kills 200] [--seed N] [STAGE...]``.

Prints one line per stage, ``NAME measured goal PASS|FAIL`` and the seed that repeats it; exit code 1 after a FAIL.
200 kills of all seven stages take about an hour and a half on 2 quiet cores.
"""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.kills import kill_stage
from support.tiny import ORDER, run_once


def main() -> int:
    """Run the loop; the exit code says whether all passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("stages", nargs="*", default=ORDER, metavar="STAGE")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    os.environ["DALLE_THREADS"] = "1"
    failed = 0
    with tempfile.TemporaryDirectory(prefix="dalle-kills-") as folder:
        os.environ["DALLE_SPOOL"] = str(Path(folder) / "spool")
        tiny = run_once(Path(folder) / "undisturbed")
        for stage in arguments.stages:
            tally = kill_stage(tiny, stage, Path(folder) / stage, kills=arguments.kills, seed=arguments.seed)
            line = tally.line(goal=arguments.kills)
            print(line, flush=True)
            for problem in tally.problems:
                print(f"  {problem}", flush=True)
            failed += " FAIL " in line
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
