"""Ingest under bad input and under kills: no crash, no hang, no row unaccounted for, the same artifact."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.bad_images import ANY, KEPT, build, encoded, flat_png, photo, scan_bomb, tiny_webp_of
from support.data_steps import Data, write_folder
from support.processes import LONG_S, send, wait_for

from dalle_model.config import IngestConfig
from dalle_model.decoding import Reason
from tasks.stages import INGEST
from tasks.step import run_step

PNG = encoded(photo(), "PNG")


def test_a_folder_of_rubbish_is_sorted_row_by_row(tmp_path: Path) -> None:
    owed = build(tmp_path / "set")
    data = Data(tmp_path)
    config = IngestConfig(source=f"imagefolder:{tmp_path}/set", rows_per_shard=20)
    manifest = data.ingest(config)
    ledger = data.rows(manifest, "ledger")
    assert len(ledger) == len(owed) == manifest.stats["rows_in"]
    wrong = {
        name: (expected, row["reason"] or KEPT, row["detail"])
        for (name, expected), row in zip(owed.items(), ledger, strict=True)  # one row per line, in order
        if expected not in (ANY, row["reason"] or KEPT)
    }
    assert not wrong
    assert manifest.rows + manifest.stats["rejected"] == len(owed)
    assert Counter(row["reason"] for row in ledger if not row["kept"]) == manifest.stats["reasons"]
    assert manifest.stats["reasons"].keys() <= {reason.value for reason in Reason}
    assert Data(tmp_path / "again", workers=1).ingest(config).sha256 == manifest.sha256, (
        "another run makes the same bytes"
    )
    for row in data.rows(manifest, "pairs"):
        assert b"secret" not in row["image"]


def test_bombs_cost_their_row_and_no_more_memory_or_time_than_allowed(tmp_path: Path) -> None:
    """The pixel limit is raised here, so that the limits of the child process are what stops them."""
    pictures = {
        "ok.png": PNG,
        "mpx88.png": flat_png(9400, 9400),
        "mpx88.webp": tiny_webp_of(9400, 9400),
        "scans.jpg": scan_bomb(4000, 6000),
        "end.png": PNG,
    }
    write_folder(tmp_path / "set", pictures, [{"file_name": name, "text": name} for name in pictures])
    peak = _PeakOfChildren()
    with peak:
        data = Data(tmp_path)
        manifest = data.ingest(IngestConfig(source=f"imagefolder:{tmp_path}/set", max_image_mpx=100, max_decode_s=8))
    outcomes = data.outcomes(manifest)
    assert outcomes["ok.png"] == outcomes["end.png"] == KEPT
    assert outcomes["scans.jpg"] == "too_slow"
    assert {outcomes["mpx88.png"], outcomes["mpx88.webp"]} <= {"too_much_memory", "broken_image"}
    assert 20e6 < peak.bytes < 600e6, "512 MB over the base of a child"


class _PeakOfChildren:
    """Largest resident size of any decoding child, sampled."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(0.01):
            for child in psutil.Process().children():
                try:
                    # A child that is not yet the decoder's program still has the memory of the process that started it.
                    if "dalle_model.decode_child" in child.cmdline():
                        self.bytes = max(self.bytes, child.memory_info().rss)
                except psutil.Error:
                    continue


CAPTIONS: list[tuple[str, str]] = [
    (json.dumps("nul \0 inside"), "caption_not_text"),
    (r'"lone \ud83d surrogate"', "caption_not_text"),
    (r'"whole \ud83d\udd25 pair"', KEPT),
    (json.dumps("\u202egnirts desrever\u202c"), KEPT),
    (json.dumps("zero\u200bwidth\ufeff"), KEPT),
    (json.dumps("\u200b\u202e"), "no_caption"),
    (json.dumps("x" * 20_000), KEPT),
    (json.dumps("x" * 20_001), "caption_too_long"),
    (json.dumps("y" * 100_000), "caption_too_long"),
    (json.dumps("z" * 5_000_000), "bad_metadata"),
    (json.dumps("<script>alert(1)</script><img src=x onerror=alert(1)>"), KEPT),
    (json.dumps("'; DROP TABLE pairs; --"), KEPT),
    (json.dumps("<|endoftext|> [PAD] </s>"), KEPT),
    (json.dumps("line\nbreak\r\nand\ttab"), KEPT),
    (json.dumps("Z" + "\u0351" * 500), KEPT),
    (json.dumps("مرحبا 你好 שלום"), KEPT),
    (json.dumps("=cmd|' /C calc'!A0"), KEPT),
    (json.dumps("../../etc/passwd %s %n {0} ${HOME}"), KEPT),
    (json.dumps(""), "no_caption"),
    (json.dumps("   "), "no_caption"),
    ("null", "no_caption"),
    ("17", "caption_not_text"),
    ("NaN", "caption_not_text"),
    ("true", "caption_not_text"),
    ('["a"]', KEPT),
    ("[]", "no_caption"),
    ('[["a", "b"]]', "caption_not_text"),
    ('{"en": "a"}', "caption_not_text"),
    ('"a", "text": "b"', "bad_metadata"),
    ('"unfinished', "bad_metadata"),
    ("[" * 5000 + "]" * 5000, "bad_metadata"),
    ('"tail"} {"x": 1', "bad_metadata"),
]


def test_hostile_captions_are_kept_or_refused_as_documented(tmp_path: Path) -> None:
    lines = [f'{{"file_name": "{n}.png", "text": {text}}}' for n, (text, _) in enumerate(CAPTIONS)]
    write_folder(tmp_path / "set", {f"{n}.png": PNG for n in range(len(CAPTIONS))}, lines)
    data = Data(tmp_path)
    manifest = data.ingest(IngestConfig(source=f"imagefolder:{tmp_path}/set", image_px=16))
    ledger = data.rows(manifest, "ledger")[: len(CAPTIONS)]
    assert {n: row["reason"] or KEPT for n, row in enumerate(ledger)} == {
        n: outcome for n, (_, outcome) in enumerate(CAPTIONS)
    }
    for row in data.rows(manifest, "pairs"):
        assert row["caption"] == " ".join(row["caption"].split())
        assert row["caption"].isprintable()
    # Lines that name no file leave their pictures without a caption; those are rows of their own.
    nameless = sum(outcome == "bad_metadata" for _, outcome in CAPTIONS)
    assert manifest.stats["rows_in"] == len(CAPTIONS) + nameless
    assert manifest.stats["reasons"]["no_caption"] == 5 + nameless


def test_a_damaged_parquet_file_is_one_line_and_nothing_half_written(tmp_path: Path) -> None:
    table = pa.table(
        {"image": [encoded(photo(seed=n), "PNG") for n in range(200)], "text": [f"number {n}" for n in range(200)]}
    )
    path = tmp_path / "set" / "x.parquet"
    path.parent.mkdir()
    pq.write_table(table, path, row_group_size=50, compression="zstd")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200_000] = os.urandom(200_000)
    path.write_bytes(data)
    run = Data(tmp_path)
    try:
        manifest = run.ingest(IngestConfig(source=f"parquet:{path}", max_rejected_share=1, rows_per_shard=20))
    except Exception as error:
        assert type(error).__name__ in ("SourceError", "DataError"), repr(error)
        assert "\n" not in str(error)
        assert not run.store.keys("manifests/")
    else:
        # The damage lay inside pictures, not in the file's own structure.
        assert manifest.stats["rows_in"] == 200
        assert manifest.stats["rejected"] >= 1


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 5))])
def test_killed_anywhere_ingest_ends_with_the_same_artifact(tmp_path: Path, seed: int) -> None:
    folder = write_folder(
        tmp_path / "set",
        {f"{n}.png": encoded(photo(seed=n % 50), "PNG") if n % 17 else b"rubbish" for n in range(200)},
        [{"file_name": f"{n}.png", "text": f"picture {n}"} for n in range(200)],
    )
    config = {"source": f"imagefolder:{folder}", "image_px": 32, "rows_per_shard": 25}
    undisturbed = Data(tmp_path / "quiet").ingest(IngestConfig(**config))
    data = Data(tmp_path / "killed")
    script = (
        "import sys; from dalle_model.config import IngestConfig; from tasks.settings import Settings; from tasks.stages import INGEST\n"
        "from tasks.step import run_step\n"
        "run_step(INGEST, IngestConfig.model_validate_json(sys.argv[1]), {}, Settings.model_validate_json(sys.argv[2]))"
    )
    dice = random.Random(seed)
    aimed = ["part.before_receipt:1", "part.after_receipt:2", "publish.before_manifest", "part.before_receipt:3"]
    pieces = dice.randint(1, 3)
    for fault in (f"part.after_receipt:{pieces}:wait", dice.choice(aimed), dice.choice(aimed)):
        argv = [sys.executable, "-c", script, json.dumps(config), data.settings.model_dump_json()]
        env = os.environ | {"DALLE_FAULT": fault}
        process = subprocess.Popen(argv, env=env, start_new_session=True, stderr=subprocess.PIPE)
        if fault.endswith(":wait"):  # there it is killed from outside, with all that it started
            assert wait_for(lambda: len(data.store.keys("parts/")) >= pieces, LONG_S)
            for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                send(victim, signal.SIGKILL)
        process.communicate(timeout=LONG_S)
    result = run_step(INGEST, IngestConfig(**config), {}, data.settings)
    assert result.ref.manifest_sha256 == undisturbed.sha256
    assert not data.store.verify(data.store.resolve(result.ref.fingerprint))
    assert data.store.keys("manifests/") == [f"manifests/ingest/{result.ref.fingerprint}.json"]
