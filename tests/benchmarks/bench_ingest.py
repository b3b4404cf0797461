"""Ingest against ``datasets.map``, interleaved: ``python tests/benchmarks/bench_ingest.py [IMAGES] [ROUNDS] [WIDTH]``.

Three ways over the same JPEGs (256 px -> 64 px, or WIDTH x 3/4 WIDTH with a camera's grain -> 64 px) on the same cores,
in turns, best of each: pictures prepared by the decoding pool, the whole ingest step (read, decode, hash, check, write,
commit), and ``datasets.map`` row by row in two processes that decodes, scales and encodes again. Then memory of the step
over 1x, 4x and 16x rows.
"""

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.config import IngestConfig
from dalle_model.decode_pool import DecodePool
from dalle_model.decoding import DecodeSettings

WORKERS = 2


def prepare(row: dict[str, Any]) -> dict[str, bytes]:
    """What most do: open, convert, scale, encode."""
    image = Image.open(io.BytesIO(row["image"])).convert("RGB")
    image.thumbnail((64, 64), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return {"small": out.getvalue()}


def grainy(width: int, height: int, seed: int) -> Image.Image:
    """``photo`` with a camera's grain: its JPEG has the bytes of a real one."""
    grain = np.random.default_rng(seed).normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(photo(width, height, seed)) + grain).clip(0, 255).astype(np.uint8))


def rates(pictures: list[bytes], scratch: Path, rounds: int) -> None:
    """Print the best rate of each way and the ratios."""
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    count = len(pictures)
    names = {f"{n:06d}.jpg": data for n, data in enumerate(pictures)}
    folder = write_folder(scratch / "set", names, [{"file_name": name, "text": f"a picture {name}"} for name in names])
    data = datasets.Dataset.from_dict({"image": pictures})

    def pool() -> None:
        with DecodePool[int](DecodeSettings(64), WORKERS) as decoding:
            assert sum(1 for _ in decoding.map(enumerate(pictures))) == count

    def step(turn: int) -> None:
        made = Data(scratch / f"step{turn}", WORKERS).ingest(IngestConfig(source=f"imagefolder:{folder}"))
        assert made.rows == count

    def mapped() -> None:
        assert len(data.map(prepare, num_proc=WORKERS, remove_columns=["image"])) == count

    best: dict[str, float] = {}
    for turn in range(rounds):
        ways: dict[str, Callable[[], None]] = {
            "decoding pool": pool,
            "ingest step": lambda turn=turn: step(turn),  # type: ignore[misc]
            "datasets.map, num_proc 2": mapped,
        }
        for name, way in ways.items():
            started = time.monotonic()
            way()
            rate = count / (time.monotonic() - started)
            best[name] = max(best.get(name, 0.0), rate)
            print(f"round {turn}  {name:26} {rate:7.0f} images/s", flush=True)
    print(f"pool / datasets.map  {best['decoding pool'] / best['datasets.map, num_proc 2']:.2f}  (goal 4)")
    print(f"step / pool          {best['ingest step'] / best['decoding pool']:.2f}  (goal 0.7)")


def memory(pictures: list[bytes], scratch: Path) -> None:
    """Print the peak of the ingesting process over growing row counts, each in a process of its own."""
    names = {f"{n}.jpg": data for n, data in enumerate(pictures[:100])}
    peaks = []
    for count in (1_000, 4_000, 16_000):
        lines = [{"file_name": f"{n % 100}.jpg", "text": f"a picture of thing {n}"} for n in range(count)]
        write_folder(scratch / str(count), names, lines)
        ended = subprocess.run(
            [sys.executable, __file__, "--step", str(scratch / str(count))], capture_output=True, text=True, check=True
        )
        peaks.append((count, float(ended.stdout)))
        print(f"peak of the ingest step over {count:6} rows  {peaks[-1][1]:.1f} MB", flush=True)
    slope = (peaks[-1][1] - peaks[0][1]) / (peaks[-1][0] - peaks[0][0]) * 10_000
    print(f"slope {slope:.2f} MB per 10,000 rows  (goal 1)")


def main() -> None:
    """All measurements."""
    if sys.argv[1:2] == ["--step"]:
        folder = Path(sys.argv[2])
        Data(folder.parent / f"{folder.name}-made", WORKERS).ingest(IngestConfig(source=f"imagefolder:{folder}"))
        status = Path(
            "/proc/self/status"
        ).read_text()  # getrusage would tell the peak of the process that started this one
        print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
        return
    given = [int(word) for word in sys.argv[1:]]
    count, rounds, width = (*given, *(2000, 3, 0)[len(given) :])
    one = grainy if width else photo
    size = (width, width * 3 // 4) if width else (256, 256)
    pictures = [encoded(one(*size, seed=n), "JPEG", quality=90) for n in range(count)]
    print(f"{count} JPEGs of {size[0]}x{size[1]}, {sum(map(len, pictures)) / count / 1e3:.1f} kB each", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        rates(pictures, Path(scratch), rounds)
        memory(pictures, Path(scratch))


if __name__ == "__main__":
    main()
