"""Wall clock, memory and share of training of a finished run: ``python tests/benchmarks/bench_quickstart.py STORE``.

Reads the facts that each stage left in its manifest; run it on a store that holds one run of a preset.
"""

import platform
import sys

from flows.inspection import all_manifests
from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import open_store


def main(uri: str) -> None:
    """Print one Markdown table."""
    newest = {m.step: m for m in all_manifests(open_store(Settings(store=uri)))}
    total = training = 0.0
    print(f"{platform.machine()}, Python {platform.python_version()}\n")
    print("| stage | seconds | of which training | peak memory, MB | rows |\n|---|---|---|---|---|")
    for name in STAGES:
        if name not in newest:
            continue
        m = newest[name]
        seconds, trained = float(m.facts["seconds"]), float(m.facts.get("train_seconds", 0.0))
        total, training = total + seconds, training + trained
        print(f"| {name} | {seconds:.1f} | {trained:.1f} | {m.facts['peak_rss_bytes'] / 1e6:.0f} | {m.rows:,} |")
    print(f"| sum | {total:.1f} | {training:.1f} ({training / total:.0%}) | | |")


if __name__ == "__main__":
    main(sys.argv[1])
