"""A folder of pictures as people have it: names, formats and captions from phones, Macs, Windows and labelling tools."""

import io
import json
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.config import IngestConfig
from dalle_model.decoding import Refused
from dalle_model.errors import DataError, SourceError
from dalle_model.sources.registry import open_source

PNG, JPG = encoded(photo(40, 30), "PNG"), encoded(photo(40, 30), "JPEG")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def seen(source: str) -> list[tuple[str, Any, str]]:
    """Key, caption, and the reason against each row."""
    rows = open_source(IngestConfig(source=source)).rows(0)
    return [(r.key, r.caption, r.image.reason.value if isinstance(r.image, Refused) else "") for r in rows]


def test_every_picture_of_a_folder_is_taken_or_has_its_reason(tmp_path: Path) -> None:
    frames = [photo(40, 30, seed=n) for n in range(3)]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 100}
    pictures = {
        "2019/a.JPEG": JPG,
        "2019/b.JPG": JPG,
        "2019/deep/er/c.jfif": JPG,
        "d.jpe": JPG,
        "e.tif": encoded(photo(40, 30), "TIFF"),
        "f.gif": encoded(frames[0], "GIF", **animated),
        "g.webp": encoded(frames[0], "WEBP", **animated),
        "h.avif": encoded(photo(40, 30), "AVIF"),
        "i.heic": HEIC,
        "j.svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        "k.jxl": b"\xff\x0a" + bytes(20),
        "._l.jpg": b"a Mac's notes",
        "Thumbs.db": b"a list of Windows",
    }
    folder = write_folder(tmp_path / "set", pictures, [])
    (folder / "metadata.jsonl").unlink()
    for number, name in enumerate(pictures):
        (folder / name).with_suffix((".txt", ".TXT", ".caption")[number % 3]).write_text(f"picture {number}")
    data = Data(tmp_path)
    manifest = data.ingest(IngestConfig(source=f"imagefolder:{folder}", image_px=32))
    outcomes = data.outcomes(manifest)
    assert outcomes == {name: "unknown_format" if name[0] in "ijk" else "kept" for name in list(pictures)[:-2]}
    captions = {row["key"]: row["caption"] for row in data.rows(manifest, "pairs")}
    assert captions == {name: f"picture {n}" for n, name in enumerate(pictures) if outcomes.get(name) == "kept"}
    details = {row["key"]: row["detail"] for row in data.rows(manifest, "ledger")}
    assert details["i.heic"] == "a HEIC file; convert it; JPEG, PNG, WebP, AVIF, GIF, TIFF and BMP are read"
    assert details["j.svg"].startswith("a SVG file") and details["k.jxl"].startswith("a JPEG XL file")
    assert manifest.stats["notes"]["first_frame"] == 2


@pytest.mark.parametrize("kind", ["imagefolder", "jsonl"])
def test_names_are_found_however_they_are_spelled(tmp_path: Path, kind: str) -> None:
    composed, apart = "Grüße/é.png", unicodedata.normalize("NFD", "Grüße/é.png")
    there = {"my cat.png": PNG, "100%.png": PNG, "a%20b.png": PNG, "d/e f.png": PNG, "Ångström.png": PNG, apart: PNG}
    named = {  # as it is written -> key
        "my%20cat.png": "my cat.png",
        "100%.png": "100%.png",
        "a%20b.png": "a%20b.png",
        "d\\e%20f.png": "d/e f.png",
        unicodedata.normalize("NFD", "Ångström.png"): "Ångström.png",
        composed: apart,
        str(tmp_path / "set" / "d" / "e f.png"): "d/e f.png",
        "%2e%2e/secret.png": "%2e%2e/secret.png",
        "no%20such.png": "no%20such.png",
    }
    (tmp_path / "secret.png").write_bytes(PNG)
    folder = write_folder(tmp_path / "set", there, [{"file_name": name, "text": key} for name, key in named.items()])
    rows = seen(f"{kind}:{folder}" + ("/metadata.jsonl" if kind == "jsonl" else ""))
    assert [key for key, _, _ in rows[:-2]] == list(named.values())[:-2], "no picture is taken again without its line"
    assert [reason for _, _, reason in rows] == [""] * 7 + ["outside_source", ""]
    data = Data(tmp_path)
    manifest = data.ingest(IngestConfig(source=f"imagefolder:{folder}", image_px=32))
    assert manifest.stats["kept"] == 7 and manifest.stats["reasons"] == {"outside_source": 1, "missing_file": 1}


def test_a_name_that_leads_elsewhere_says_what_to_give(tmp_path: Path) -> None:
    names = ["https://x.org/a.png", "file:///a.png", "/elsewhere/a.png", "iVBORw0KGgo" * 1000]
    folder = write_folder(tmp_path, {}, [{"file_name": name, "text": "x"} for name in names])
    rows = open_source(IngestConfig(source=f"imagefolder:{folder}")).rows(0)
    words = [row.image.detail for row in rows if isinstance(row.image, Refused)]
    expected = ["urls:LIST", "give a path", "whose folder holds the pictures", "in base64 are not read"]
    assert [part for part, said in zip(expected, words, strict=True) if part not in said] == []
    (tmp_path / "list.csv").write_text("url,text\nhttps://x.org/a.png,x\n")
    (row,) = open_source(IngestConfig(source=f"csv:{tmp_path}/list.csv")).rows(0)
    assert isinstance(row.image, Refused) and "a list of URLs is read by urls:LIST" in row.image.detail


def test_an_avif_picture_is_what_it_was(tmp_path: Path) -> None:
    colours = Image.new("RGBA", (64, 32), (200, 30, 60, 255))
    colours.paste((0, 0, 0, 0), (32, 0, 64, 32))
    data = Data(tmp_path)
    folder = write_folder(
        tmp_path / "set",
        {"a.png": encoded(colours, "AVIF", quality=95), "cut.avif": encoded(photo(), "AVIF")[:-1]},
        [{"file_name": "a.png", "text": "a"}, {"file_name": "cut.avif", "text": "cut"}],
    )
    manifest = data.ingest(IngestConfig(source=f"imagefolder:{folder}", image_px=64))
    assert data.outcomes(manifest) == {"a.png": "kept", "cut.avif": "broken_image"}
    (row,) = data.rows(manifest, "pairs")
    extra = json.loads(row["extra"])
    assert (extra["format"], extra["notes"], row["width"], row["height"]) == ("AVIF", ["alpha_flattened"], 64, 32)
    (folder / "stored.png").write_bytes(row["image"])
    with Image.open(folder / "stored.png") as stored:
        left, right = stored.getpixel((10, 10)), stored.getpixel((50, 10))
    assert isinstance(left, tuple) and max(abs(a - b) for a, b in zip(left, (200, 30, 60), strict=True)) < 6
    assert right == (255, 255, 255)


@pytest.mark.parametrize(("mark", "said"), [(";", "sep=;"), (",", '"sep=,"'), ("|", "SEP=|"), ("\t", "sep=\t")])
def test_a_table_that_says_what_parts_its_cells_is_read(tmp_path: Path, mark: str, said: str) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    rows = [["file_name", "text"], [" a.png ", "a cat, or two"], ["a.png"], ["no.png", "x"]]
    lines = [said, *(mark.join(f'"{cell}"' for cell in row) for row in rows)]
    (tmp_path / "list.csv").write_text("\r\n".join(lines), newline="")
    found = seen(f"csv:{tmp_path}/list.csv")
    assert found == [("a.png", "a cat, or two", ""), ("list.csv#4", "", "bad_metadata"), ("no.png", "x", "")]


def test_what_is_wrong_with_a_source_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pictures.zip").write_bytes(b"PK")
    (tmp_path / "a.png").write_bytes(PNG)
    table = pa.table({"URL": ["https://x.org/a.png"], "TEXT": ["a"]})
    pq.write_table(table, tmp_path / "laion.parquet")
    for source, words in {
        f"imagefolder:{tmp_path}/pictures.zip": "unpack it and give the folder",
        f"imagefolder:{tmp_path}/a.png": "give the folder that holds it",
        f"imagefolder:{tmp_path}": "or give your list: jsonl:LIST, csv:LIST",
        f"parquet:{tmp_path}/laion.parquet": "or give the file as a list of URLs, urls:LIST",
    }.items():
        with pytest.raises(SourceError, match=words):
            open_source(IngestConfig(source=source))
    (tmp_path / "list.csv").write_bytes("a.png,a cat\nb.png,größer\n".encode("cp1252"))
    (row,) = open_source(IngestConfig(source=f"csv:{tmp_path}/list.csv")).rows(0)
    assert isinstance(row.image, Refused) and row.image.detail.endswith("names another column of: a.png, a cat")
    (tmp_path / "list.csv").write_bytes("file_name,text\na.png,größer\n".encode("cp1252"))
    manifest_of = Data(tmp_path).ingest
    with pytest.raises(DataError, match="save its file as UTF-8"):
        manifest_of(IngestConfig(source=f"csv:{tmp_path}/list.csv"))


def test_a_macs_notes_in_an_archive_part_no_sample(tmp_path: Path) -> None:
    """``tar`` of a Mac puts "._NAME" before each file that was fetched from the web."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (("1.jpg", JPG), ("1.txt", b"one"), ("d/2.jpg", JPG), ("d/2.txt", b"two")):
            folder, _, last = name.rpartition("/")
            for member, content in ((f"{folder}/._{last}".lstrip("/"), b"notes"), (name, data)):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    assert seen(f"webdataset:{tmp_path}/a.tar") == [("a.tar/1", "one", ""), ("a.tar/d/2", "two", "")]
