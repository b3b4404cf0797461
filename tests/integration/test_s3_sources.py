"""The same source in a folder and in a bucket is the same artifact."""

import json
import tarfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder
from support.object_stores import BUCKET, Server, shared

from dalle_model.config import IngestConfig
from dalle_model.errors import DataError, SourceError, UsageError
from dalle_model.sources import imagefolder, telling
from dalle_model.sources.registry import open_sources
from tasks.artifacts import Part
from tasks.export import export_pairs
from tasks.job import Job
from tasks.s3_source import S3Bucket, remote_opener
from tasks.stages import INGEST
from tasks.step import plan


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return shared("moto")


def upload(server: Server, folder: Path, prefix: str) -> str:
    client = server.store().backend._client  # type: ignore[attr-defined]
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            client.call("put_object", Bucket=BUCKET, Key=key, Body=path.read_bytes())
    return f"s3://{BUCKET}/{prefix}"


def make_sources(root: Path) -> dict[str, str]:
    """One of each kind below ``root``; the place of each by kind. Names that S3 would sort in another order."""
    pictures = {
        name: encoded(photo(40, 30, seed=n), "PNG") for n, name in enumerate(["b.png", "a/1 ü.png", "a-b.png", "a.png"])
    }
    lines = [{"file_name": name, "text": f"picture {name}"} for name in [*pictures, "gone.png", "../../out.png"]]
    write_folder(root / "folder", pictures | {".hidden.png": b"x", "a/bad.png": b"rubbish"}, lines)
    (root / "folder" / "a" / "bad.txt").write_text("a bad one")
    rows = {"image": list(pictures.values()), "text": [f"row {n}" for n in range(4)]}
    (root / "parquet").mkdir()
    for n in range(2):
        pq.write_table(pa.table(rows), root / "parquet" / f"{n}.parquet", row_group_size=3)
    (root / "lines").mkdir()
    for name, data in pictures.items():
        (root / "lines" / name.replace("/", "_")).write_bytes(data)
    named = [{"file_name": name.replace("/", "_"), "text": name} for name in pictures]
    (root / "lines" / "list.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*named, {"file_name": "no"}])
    )
    (root / "lines" / "list.csv").write_text(
        "file_name,text\n" + "".join(f"{r['file_name']},{r['text']}\n" for r in named)
    )
    (root / "urls.txt").write_text("http://127.0.0.1:9/a.png one\nftp://x/a.png two\n")
    (root / "tars").mkdir()
    with tarfile.open(root / "tars" / "0.tar", "w") as archive:
        for name in ("b.png", "a.png"):
            archive.add(root / "folder" / name, name)
            (root / "t.txt").write_text(f"from a tar: {name}")
            archive.add(root / "t.txt", name.replace(".png", ".txt"))
    return {
        "imagefolder": "folder", "parquet": "parquet", "jsonl": "lines/list.jsonl", "csv": "lines/list.csv",
        "webdataset": "tars",
    }  # fmt: skip


def test_a_source_in_a_bucket_is_the_same_artifact(
    moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.env().items():
        monkeypatch.setenv(name, value)
    kinds = make_sources(tmp_path / "set")
    uri = upload(moto, tmp_path / "set", "some where/set")
    here, there = Data(tmp_path / "here", workers=1), Data(tmp_path / "there", workers=2)
    for kind, place in kinds.items():
        config = IngestConfig(source=f"{kind}:{tmp_path}/set/{place}", image_px=32, rows_per_shard=3)
        local = here.ingest(config)
        remote = there.ingest(config.model_copy(update={"source": f"{kind}:{uri}/{place}"}))
        assert remote.sha256 == local.sha256, kind
        sources = [
            open_sources(
                config.model_copy(update={"source": f"{kind}:{where}/{place}"}), remote_opener(there.settings)
            )[0]
            for where in (uri, tmp_path / "set")
        ]
        far, near = [(source.count(), source.bytes_read()) for source in sources]
        assert far == near and (far[0] or far[1][1]), "how far an ingest is can be told of a bucket, too"
        assert local.rows >= 2
    ledger = {
        row["key"]: row["reason"]
        for row in here.rows(here.ingest(IngestConfig(source=f"imagefolder:{tmp_path}/set/folder")), "ledger")
    }
    assert ledger["gone.png"] == "missing_file"
    assert ledger["a/bad.png"] == "unknown_format"
    listed = IngestConfig(source=f"urls:{uri}/urls.txt", max_rejected_share=1)
    for data, source in ((here, f"urls:{tmp_path}/set/urls.txt"), (there, listed.source)):
        with pytest.raises(SourceError, match=r"only 0 of 1 fetches|rejected"):
            data.ingest(listed.model_copy(update={"source": source}))


@pytest.mark.parametrize("written", [False, True])
def test_the_objects_of_a_bucket_are_read_a_second_time_only_when_one_was_written(
    moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    for name, value in moto.env().items():
        monkeypatch.setenv(name, value)
    pictures = {f"{n}.png": encoded(photo(40, 30, seed=n), "PNG") for n in range(4)}
    write_folder(tmp_path / "set", pictures, [{"file_name": name, "text": name} for name in pictures])
    uri = upload(moto, tmp_path / "set", f"traced {written}")
    (tmp_path / "set" / "2.png").write_bytes(encoded(photo(40, 30, seed=9), "PNG"))
    read: list[object] = []
    digest, commit = imagefolder.content_digest, Job.commit_part

    def meddling(job: Job, n: int, part: Part) -> None:
        commit(job, n, part)
        if written:
            upload(moto, tmp_path / "set", f"traced {written}")

    monkeypatch.setattr(imagefolder, "content_digest", lambda root, *more: (read.append(root), digest(root, *more))[1])
    monkeypatch.setattr(Job, "commit_part", meddling)
    config = IngestConfig(source=f"imagefolder:{uri}", image_px=32)
    with pytest.raises(DataError, match="changed while it was read") if written else nullcontext():
        assert Data(tmp_path).ingest(config).rows == 4
    assert len(read) == 1 + written


def test_planning_a_bucket_tells_how_far_it_is_and_asks_for_each_object_once(
    moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.env().items():
        monkeypatch.setenv(name, value)
    pictures = {f"{n}.png": encoded(photo(40, 30, seed=n), "PNG") for n in range(6)}
    write_folder(tmp_path / "set", pictures, [{"file_name": name, "text": name} for name in pictures])
    config = IngestConfig(source=f"imagefolder:{upload(moto, tmp_path / 'set', 'planned')}", image_px=32)
    told: list[dict[str, Any]] = []
    asked: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def counting(fs: Any, method: str, *more: Any, **kwargs: Any) -> Any:
        asked.append(method)
        return await call(fs, method, *more, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counting)
    monkeypatch.setattr(S3Bucket, "page_keys", 3)
    monkeypatch.setattr(telling, "_EVERY_S", 0.0)
    for first_s in (600.0, 0.0):
        monkeypatch.setattr(telling, "_FIRST_S", first_s)
        asked.clear()
        planned = plan(INGEST, config, {}, Data(tmp_path).settings, told.append)
        assert not (first_s and told), "what ends sooner than that is not told"
    listed = [(e["done"], e["total"]) for e in told if e["unit"] == "objects listed"]
    assert listed == [(3, 0), (6, 0), (7, 0), (7, 7)]
    hashed = [e for e in told if e["unit"] == "kB hashed"]
    assert hashed[-1]["done"] == hashed[-1]["total"] and hashed[-1]["figures"] == {"files": 7}
    assert [e["done"] for e in hashed] == sorted(e["done"] for e in hashed)
    assert asked.count("get_object") == 7, "each object once"
    assert asked.count("head_object") <= 1, "the listing has the sizes"
    assert planned.fingerprint == Data(tmp_path / "again").ingest(config).fingerprint


def test_trouble_with_a_bucket_is_named(moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in moto.env().items():
        monkeypatch.setenv(name, value)
    data = Data(tmp_path)
    with pytest.raises(SourceError, match="does not exist; give a key"):
        data.ingest(IngestConfig(source=f"imagefolder:s3://{BUCKET}/no/such/place"))
    with pytest.raises(UsageError, match="gs:// is not read"):
        data.ingest(IngestConfig(source="imagefolder:gs://bucket/x"))


def test_pairs_are_exported_to_a_bucket(moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in moto.env().items():
        monkeypatch.setenv(name, value)
    data, there = Data(tmp_path), moto.uri()
    pictures = {f"{n}.png": encoded(photo(40, 30, seed=n), "PNG") for n in range(3)}
    lines = [{"file_name": name, "text": name} for name in [*pictures, "gone.png"]]
    manifest = data.ingest(IngestConfig(source=f"imagefolder:{write_folder(tmp_path / 'set', pictures, lines)}"))
    settings = data.settings.model_copy(update={"endpoint_url": moto.url})
    wrote = export_pairs(data.store, manifest, there, settings)
    assert wrote == export_pairs(data.store, manifest, str(tmp_path / "here"), settings)
    assert wrote == {"pairs": 3, "rejected": 1, "withdrawn": 0}
    bucket, files = moto.store(there), [p for p in (tmp_path / "here").rglob("*") if p.is_file()]
    assert sorted(bucket.keys("")) == sorted(path.relative_to(tmp_path / "here").as_posix() for path in files)
    for path in files:
        assert bucket.load(path.relative_to(tmp_path / "here").as_posix()) == path.read_bytes()
    with pytest.raises(UsageError, match="is not empty"):
        export_pairs(data.store, manifest, there, settings)
    with pytest.raises(UsageError, match="gs://x/y: give a folder or s3"):
        export_pairs(data.store, manifest, "gs://x/y", settings)
