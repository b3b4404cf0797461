"""What a person gets wrong, and what a machine lacks: one line with the remedy, exit code 1 or 2, nothing half-written."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import Said, dalle
from support.object_stores import BUCKET, KEY, SECRET, shared
from support.processes import DALLE, LONG_S, closed_port
from support.small_disk import mounted_disk
from support.tiny import TinyRun, command_sets

from tasks import pictures, s3_backend

TINY = ("--preset", "tiny", *command_sets())


@pytest.fixture
def store(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A store with the undisturbed run in it."""
    return tiny_run.copy(tmp_path / "artifacts")


def manifests(store: Path) -> set[str]:
    return {p.name for p in store.glob("manifests/*/*")}


def refused(said: Said, code: int, *words: str) -> None:
    """One line, all the words in it, the right exit code, and no secret."""
    assert said.code == code, said
    for word in words:
        assert word in said.error, (word, said.error)
    assert SECRET not in said.out + said.err


# wrong words: exit code 2, before anything is touched


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "tinny"), ("unknown preset 'tinny'", "quickstart", "tiny")),
        (("run", "tiny", "--set", "train.stepz=5"), ("unknown key 'stepz'", "did you mean steps")),
        (("run", "tiny", "--set", "trian.steps=5"), ("unknown key 'trian'", "train")),
        (("run", "tiny", "--set", "train.steps"), ("has no '='", "section.key=value")),
        (("run", "tiny", "--set", "train.steps=many"), ("train.steps=many", "integer", ">= 1")),
        (("run", "tiny", "--set", "train.steps=0"), ("train.steps=0", "allowed: int >= 1")),
        (("run", "tiny", "--set", "sampler.top_p=1.5"), ("sampler.top_p=1.5", "float > 0 and <= 1")),
        (("run", "tiny", "--set", "tokenizer.kind=vae"), ("tokenizer.kind=vae", "one of fsq, vq, dvae")),
        (("run", "tiny", "--set", "model.dim=66"), ("model.dim=66", "multiple of")),
        (("run", "tiny", "--set", "ingest.source=floppy:A"), ("unknown source 'floppy:A'", "imagefolder:PATH")),
        (("run", "tiny", "--store", "ftp://host/x"), ("ftp://", "give a folder or s3://bucket/prefix")),
        (("run", "tiny", "--store", f"s3://{KEY}:{SECRET}@bucket/x"), ("s3://bucket/prefix", "AWS_SECRET_ACCESS_KEY")),
        (("run", "tiny", "--device", "abacus"), ("device", "abacus")),
        (("run", "tiny", "--deadline", "-1"), ("deadline", "-1")),
        (("explain", "polish"), ("polish",)),
        (("config", "tinny"), ("unknown preset 'tinny'",)),
    ],
)
def test_wrong_words_are_answered_with_what_is_allowed(
    words: tuple[str, ...], told: tuple[str, ...], tmp_path: Path
) -> None:
    said = dalle(*words, DALLE_STORE=str(tmp_path / "artifacts"))
    refused(said, 1 if words[0] == "explain" else 2, *told)
    assert not (tmp_path / "artifacts").exists()


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    said = dalle("ingest", f"imagefolder:{tmp_path}/none", "--store", str(tmp_path / "artifacts"), "--debug")
    assert said.code == 1
    assert "Traceback (most recent call last)" in said.err and "SourceError" in said.err


# references


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("show", "ffffffffffff"), 1, ("no artifact answers to 'ffffffffffff'", "dalle ls")),
        (("show", "prodcution"), 1, ("prodcution", "production")),
        (("show", "abc"), 1, ("needs 4 digits",)),
        (("verify", "manifests/fit/nope.txt"), 1, ("no manifest's URI",)),
        (("curate", "MODEL", *TINY), 2, ("is of kind model, but pairs is needed", "dalle ls --kind pairs")),
        (("generate", "a cat", "--model", "TOKENIZER", *TINY), 2, ("is of kind tokenizer, but model is needed",)),
        (("encode", "CURATED", "--tokenizer", "MODEL", *TINY), 2, ("is of kind model, but tokenizer is needed",)),
        (("rollback", "nobody"), 1, ("there is no name 'nobody'",)),
        (("promote", "MODEL", "--as", "../up"), 2, ("../up",)),
    ],
)
def test_wrong_references_say_what_is_near_or_needed(
    words: tuple[str, ...], code: int, told: tuple[str, ...], tiny_run: TinyRun, store: Path
) -> None:
    assert dalle("promote", tiny_run.results["fit"].ref.fingerprint, "--store", str(store)).code == 0
    stages = {"MODEL": "fit", "TOKENIZER": "fit-tokenizer", "CURATED": "curate"}
    real = [tiny_run.results[stages[w]].ref.fingerprint[:12] if w in stages else w for w in words]
    before = manifests(store)
    refused(dalle(*real, "--store", str(store)), code, *told)
    assert manifests(store) == before


# sources and prompts


def test_a_missing_folder_an_empty_one_and_one_without_rows(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "metadata.jsonl").write_text("")
    for folder, words in (("none", ("none",)), ("empty", ("metadata.jsonl",)), ("bare", ("bare",))):
        said = dalle("ingest", f"imagefolder:{tmp_path / folder}", "--store", str(tmp_path / "artifacts"))
        refused(said, 1, *words)
    assert not manifests(tmp_path / "artifacts")


def test_a_curation_that_nothing_survives_names_the_rule(tiny_run: TinyRun, store: Path) -> None:
    before = manifests(store)
    said = dalle(
        "curate",
        tiny_run.results["ingest"].ref.fingerprint,
        "--store",
        str(store),
        *TINY,
        "--set",
        "curate.min_caption_words=40",
    )
    refused(said, 1, "min_caption_words")
    assert manifests(store) == before


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.txt", None, ("none.txt", "is not a file")),
        ("broken.jsonl", b'{"prompt": "a cat"}\n{"prompt": ', ("broken.jsonl", "line 2", "cannot be read")),
        ("column.csv", b"words\na cat\n", ("column.csv", "prompt or text or caption")),
        ("image.parquet", b"PAR1 nothing", ("image.parquet", "parquet")),
        ("latin.txt", "caf\u00e9".encode("latin-1"), ("latin.txt",)),
        ("empty.txt", b"\n\n", ("empty.txt", "holds no prompt")),
        ("count.jsonl", b'{"prompt": "a cat", "n": 0}', ("count.jsonl, line 1", "at least 1")),
        ("list.docx", b"x", ("list.docx", "txt, jsonl, csv, tsv or parquet")),
    ],
)
def test_an_unreadable_prompt_file_is_named_with_its_line(
    name: str, content: bytes | None, told: tuple[str, ...], store: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    before = manifests(store)
    refused(
        dalle("generate", "--prompts", str(path), "--store", str(store), "--out", str(tmp_path / "out"), *TINY),
        1,
        *told,
    )
    assert manifests(store) == before


def test_there_is_nothing_to_draw_with_in_an_empty_store(tmp_path: Path) -> None:
    said = dalle("generate", "a cat", "--store", str(tmp_path / "artifacts"), "--out", str(tmp_path / "out"))
    refused(said, 1, "holds no model", "dalle run quickstart")


def test_a_device_that_is_not_there_is_named(tiny_run: TinyRun, store: Path) -> None:
    said = dalle(
        "fit",
        tiny_run.results["encode"].ref.fingerprint,
        "--device",
        "cuda:7",
        "--store",
        str(store),
        *TINY,
        "--set",
        "train.seed=5",
    )
    refused(said, 1, "cuda:7", "--device")


# places that cannot be written


def test_a_store_that_is_a_file_or_below_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(dalle("ingest", "openmoji", "--store", str(place), *TINY), 1, str(tmp_path / "file"), "--store")
    assert (tmp_path / "file").read_text() == "x"


def test_a_store_that_may_only_be_read_still_serves_what_it_has(
    tiny_run: TinyRun, tmp_path: Path, small_disk: Path
) -> None:
    store = tiny_run.copy(small_disk / "artifacts", before="fit-tokenizer")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert dalle("show", tiny_run.results["curate"].ref.fingerprint, "--store", str(store)).code == 0
    assert dalle("ingest", "openmoji", "--store", str(store), *TINY).code == 0
    refused(
        dalle("ingest", "openmoji", "--store", str(store), *TINY, "--set", "ingest.limit=40"),
        1,
        str(small_disk),
        "--store",
    )


def test_an_output_folder_that_cannot_be_made_is_said_before_any_work(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    before = manifests(store)
    said = dalle("generate", "a dog", "--store", str(store), "--out", str(tmp_path / "file" / "out"), *TINY)
    refused(said, 2, "--out")
    assert manifests(store) == before


def test_a_spool_that_cannot_be_made_names_its_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    said = dalle(
        "ingest",
        "openmoji",
        "--store",
        str(tmp_path / "artifacts"),
        *TINY,
        DALLE_SPOOL=str(tmp_path / "file" / "spool"),
    )
    refused(said, 1, "DALLE_SPOOL")


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_space_of_mapped_pictures_is_taken_before_they_are_read(
    by_hand: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file had holes: on a disk that was full the step was "killed by signal 7 (out of memory?)"."""
    if by_hand:  # as on macOS
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    images = pictures._memmap(tmp_path / "train.u8", (3, 700, 700, 3))
    assert not images.any() and images.nbytes == (tmp_path / "train.u8").stat().st_size
    assert (tmp_path / "train.u8").stat().st_blocks * 512 >= images.nbytes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    with mounted_disk(tmp_path / "small", "2m") as folder:
        yield folder


def _fill(folder: Path, leave: int) -> Path:
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - leave)))
    return ballast


@pytest.mark.parametrize("leave", [0, 40_000])
def test_a_full_spool_is_said_and_the_same_command_succeeds_afterwards(
    leave: int, small_disk: Path, tmp_path: Path
) -> None:
    words = ("ingest", "openmoji", "--store", str(tmp_path / "artifacts"), "--json", *TINY)
    ballast = _fill(small_disk, leave)
    refused(dalle(*words, DALLE_SPOOL=str(small_disk / "spool")), 1, "no space left", "DALLE_SPOOL")
    assert not manifests(tmp_path / "artifacts")
    ballast.unlink()
    said = dalle(*words, DALLE_SPOOL=str(small_disk / "spool"))
    assert said.code == 0 and said.payload["artifacts"]["ingest"]["rows"] == 96
    assert list((small_disk / "spool").iterdir()) == []


def test_a_full_store_is_said_and_the_same_command_goes_on_afterwards(tiny_run: TinyRun, small_disk: Path) -> None:
    store = small_disk / "artifacts"
    ballast = _fill(small_disk, 120_000)
    words = ("ingest", "openmoji", "--store", str(store), "--json", *TINY)
    refused(dalle(*words), 1, "no space left", "--store", "run the same command again")
    assert not manifests(store)
    ballast.unlink()
    said = dalle(*words)
    assert said.code == 0, said
    assert said.payload["artifacts"]["ingest"]["manifest_sha256"] == tiny_run.results["ingest"].ref.manifest_sha256


# object storage


@pytest.mark.server
def test_wrong_credentials_are_one_line_without_the_secret() -> None:
    server = shared("rclone")
    wrong = server.env() | {"AWS_SECRET_ACCESS_KEY": SECRET + "x"}
    for words in (("ls",), ("ingest", "openmoji", *TINY), ("show", "abcdef")):
        refused(dalle(*words, "--store", server.uri(), **wrong), 1, "AWS_ACCESS_KEY_ID")


@pytest.mark.server
def test_a_bucket_that_is_not_there_is_named() -> None:
    for server in (shared("moto"), shared("rclone")):
        said = dalle("ingest", "openmoji", "--store", "s3://no-such-bucket-here/x", *TINY, **server.env())
        refused(said, 1, "no-such-bucket-here")


@pytest.mark.server
def test_a_server_that_is_not_there_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_backend, "CONTACT_S", 2.0)
    with closed_port() as port:
        env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        said = dalle("ingest", "openmoji", "--store", f"s3://{BUCKET}/x", *TINY, **env)
    refused(said, 1, f"127.0.0.1:{port}", "no server answers")  # after ten minutes, had it answered before


@pytest.mark.server
def test_a_prompt_file_that_is_not_in_its_bucket_is_named(store: Path, tmp_path: Path) -> None:
    uri = f"s3://{BUCKET}/prompts/none.txt"
    said = dalle(
        "generate",
        "--prompts",
        uri,
        "--store",
        str(store),
        "--out",
        str(tmp_path / "out"),
        *TINY,
        **shared("moto").env(),
    )
    refused(said, 1, uri, "does not exist")


# Prefect


def test_a_prefect_api_that_does_not_answer_is_named_with_the_ways_out(tmp_path: Path) -> None:
    command = [*DALLE, "run", "tiny", "--store", str(tmp_path / "artifacts"), "--out", str(tmp_path / "out")]
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}/api"
        env = os.environ | {"PREFECT_API_URL": url}
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LONG_S)
    said = Said(ended.returncode, ended.stdout, ended.stderr)
    refused(said, 1, url, "does not answer", "dalle up", "unset PREFECT_API_URL")
    assert not (tmp_path / "artifacts").exists()
