"""Rates of the rules that read captions: ``python tests/benchmarks/bench_curation.py [ROWS]``.

Interleaved with a peer, the same rules as plain Python functions of one caption, in one process; the best of several
rounds counts for both, since others may use the machine. CPU seconds, one thread.
"""

import random
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from dalle_model.config import CurateConfig
from dalle_model.curation.features import metadata_columns
from dalle_model.curation.languages import language_columns
from dalle_model.curation.phrases import Phrasebook, mine
from dalle_model.curation.rules import checks
from dalle_model.curation.word_lists import profanity

_EMAIL, _DATE = re.compile(r"\w+@\w+\.\w+"), re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")


def captions(rows: int) -> list[str]:
    """Captions of 1 to 14 words from a vocabulary of 20,000 with Zipf's frequencies; some with dates and addresses."""
    rng = random.Random(0)
    vocabulary = [
        "".join(rng.choice("abcdefghiklmnoprstuvw") for _ in range(rng.randint(2, 10))) for _ in range(20_000)
    ]
    weights = [1 / (rank + 1) for rank in range(len(vocabulary))]
    drawn = iter(rng.choices(vocabulary, weights, k=rows * 8))
    # One in eight has something to look at closely, as in the clip art that we know.
    extra = (" taken on 12 March 2016", " mail me at a@example.org", " 2016-03-12", " call +49 30 1234567", *[""] * 28)
    return [" ".join(next(drawn) for _ in range(rng.randint(1, 8))) + rng.choice(extra) for _ in range(rows)]


def plain(texts: list[str]) -> list[tuple[float, ...]]:
    """The peer: row by row, words, characters, repetition, listed words, dates and addresses."""
    listed = profanity().words
    scored = []
    for text in texts:
        words = text.lower().split(" ")
        most = max(Counter(words).values()) / len(words)
        bad = sum(word in listed for word in words)
        dates = sum(len(m.group()) for m in _DATE.finditer(text)) / max(len(text), 1)
        scored.append((len(words), len(text), most, bad, dates, len(_EMAIL.findall(text))))
    return scored


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    before = time.process_time()
    work()
    return time.process_time() - before


def main() -> None:
    """Print one line per measurement."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    texts = captions(rows)
    table = pa.table(
        {
            "caption": pa.array(texts),
            "width": pa.array(np.full(rows, 256, np.int32)),
            "height": pa.array(np.full(rows, 200, np.int32)),
            "extra": pa.array(["{}"] * rows),
        }
    )
    shards = [table.slice(first, 8192) for first in range(0, rows, 8192)]
    scored = [metadata_columns(shard) for shard in shards]

    def judge() -> None:
        for columns in scored:
            for check in checks(CurateConfig()):
                if check.rule in columns:
                    check.passed(np.asarray(columns[check.rule], np.float64))

    arrays = [shard["caption"].combine_chunks() for shard in shards]
    book = Phrasebook.of(mine(lambda: arrays, 0.001))
    work: dict[str, tuple[int, Callable[[], object]]] = {
        "metadata rules: scores": (rows, lambda: [metadata_columns(shard) for shard in shards]),
        "peer, row by row": (rows, lambda: plain(texts)),
        "thresholds from stored scores": (rows, judge),
        "mining phrases (two passes)": (rows, lambda: mine(lambda: arrays, 0.001)),
        "share in mined phrases": (rows, lambda: [book.shares(array) for array in arrays]),
        "language": (8192, lambda: language_columns(arrays[0])),
    }
    best = dict.fromkeys(work, float("inf"))
    for _ in range(3):
        for name, (_, job) in work.items():
            best[name] = min(best[name], cpu_s(job))
    for name, (count, _) in work.items():
        print(f"{name:36} {count / best[name]:12,.0f} rows/CPU-s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB, {rows:,} rows")


if __name__ == "__main__":
    main()
