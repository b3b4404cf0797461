"""Prompt files."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_model.config import GenerateConfig
from dalle_model.errors import SourceError, UsageError
from tasks.generate import identity
from tasks.prompts import Prompt, all_prompts, parse_prompts
from tasks.settings import Settings
from tasks.work_items import items_of


def test_the_same_prompts_are_read_from_every_kind_of_file() -> None:
    rows = [{"prompt": "a red heart", "n": 2, "seed": 7, "tags": "love,red", "negative": "blue"}, {"prompt": "a clock"}]
    table = pa.table(
        {
            "prompt": ["a red heart", "a clock"],
            "n": [2, None],
            "seed": [7, None],
            "tags": ["love,red", None],
            "negative": ["blue", None],
        }
    )
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    expected = [Prompt("a red heart", 2, 7, ("love", "red"), "blue"), Prompt("a clock")]
    assert parse_prompts(parquet.getvalue(), "p.parquet") == expected
    assert parse_prompts("\n".join(json.dumps(r) for r in rows).encode(), "p.jsonl") == expected
    assert (
        parse_prompts(b'prompt,n,seed,tags,negative\na red heart,2,7,"love,red",blue\na clock,,,,\n', "p.csv")
        == expected
    )
    assert parse_prompts(b"a red heart\n\na clock\n", "p.txt") == [Prompt("a red heart"), Prompt("a clock")]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("p.doc", b"x", "txt, jsonl, csv, tsv or parquet"),
        ("folder/prompts", b"x", "has no ending"),
        ("p.txt", b"\xff\xfe\xfa", "not UTF-16"),
        ("p.txt", b"a\nb\xfa\n", "line 2 is not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n{oops', "line 2 cannot be read"),
        ("p.jsonl", b'[{"prompt": "a"}]', "a JSON list, not an object"),
        pytest.param("p.jsonl", b"[" * 100_000, "line 1 cannot be read", id="deep"),
        ("p.jsonl", b'{"other": "a"}', "line 1: no text column"),
        ("p.jsonl", b'{"prompt": null, "n": 2}', "the prompt is missing"),
        ("p.jsonl", b'{"prompt": 7}', "the prompt 7 is no text"),
        ("p.jsonl", b'{"prompt": "a", "negative": 7}', "the negative prompt 7 is no text"),
        ("p.jsonl", b'{"prompt": "a", "tags": 5}', "the tags 5 are neither"),
        ("p.jsonl", b'{"prompt": "a", "n": 2.7}', "n 2.7 is not a whole number"),
        ("p.jsonl", b'{"prompt": "a", "n": true}', "n True is not"),
        ("p.jsonl", b'{"prompt": "a", "n": 1e999}', "n inf is not"),
        ("p.jsonl", b'{"prompt": "a", "n": 1000000000}', "at most 10000"),
        ("p.jsonl", b'{"prompt": "a", "seed": -1}', "seed -1 is not a whole number of at least 0"),
        ("p.jsonl", b'{"prompt": "a", "seed": 9223372036854775808}', "at most 9223372036854775807"),
        ("p.csv", b"prompt,n\na,zero\n", "n 'zero' is not a whole number"),
        ("p.csv", b"prompt,n\na,0\n", "at least 1"),
        ("p.csv", b"a red heart\na clock\n", r"no text column; name it .* \(it has a red heart\)"),
        ("p.csv", b"prompt\na red, round heart\n", "line 2: 2 cells under 1 headings"),
        ("p.csv", b"prompt,prompt\na,b\n", "2 columns named 'prompt'"),
        ("p.csv", b'prompt\na\n"never closed\nb\n', "line 3 cannot be read"),
        ("p.csv", b'prompt,n\n"two\nlines",1\nb,x\n', "line 4: n 'x'"),
        ("p.parquet", b"PAR1 no", "cannot be read"),
    ],
)
def test_a_bad_file_is_named_with_its_place(name: str, data: bytes, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        parse_prompts(data, name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_of_editors_and_spreadsheets_are_read(encoding: str, end: str) -> None:
    """A byte order mark became part of the first prompt, and of the first heading."""
    wanted = [Prompt("红心, \u2028 rund", n=2), Prompt("א clock")]
    rows = ["红心, \u2028 rund", "א clock"]
    assert parse_prompts(end.join([*rows, "", ""]).encode(encoding), "p.txt") == [Prompt(row) for row in rows]
    table = end.join(["Prompt; N ;seed", '"红心, \u2028 rund"; 2;', "א clock", ";;", ""])
    assert parse_prompts(table.encode(encoding), "p.csv") == wanted
    assert parse_prompts(table.replace(";", "\t").encode(encoding), "p.tsv") == wanted
    lines = [json.dumps({"text": rows[0], "n": "2"}, ensure_ascii=False), '"א clock"', ""]
    assert parse_prompts(end.join(lines).encode(encoding), "p.jsonl") == wanted


def test_a_table_of_one_column_between_tabs_may_hold_commas() -> None:
    """Without a tab among the headings cells were cut at commas."""
    assert parse_prompts(b"prompt\na red, round heart\n", "p.tsv") == [Prompt("a red, round heart")]


def test_gaps_in_tables_are_gaps() -> None:
    """A data frame turns whole numbers into 7.0 and gaps into NaN; pictures in other columns are not read."""
    out = io.BytesIO()
    nan = float("nan")
    table = pa.table(
        {
            "prompt": pa.array(["a", "b"]).dictionary_encode(),
            "seed": [7.0, nan],
            "n": pa.array([nan, 3.0]),
            "tags": [["x", None, " y "], None],
            "image": pa.array([b"\xff", None]),
        }
    )
    pq.write_table(table, out)
    wanted = [Prompt("a", seed=7, tags=("x", "y")), Prompt("b", n=3)]
    assert parse_prompts(out.getvalue(), "p.parquet") == wanted
    assert parse_prompts(b'prompt,seed,n,tags\na,7.0,,"x,,y"\nb,,3.0,\n', "p.csv") == wanted


def test_characters_that_cannot_be_stored_are_dropped_like_in_captions(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a\\ud800 \\u0000heart", "negative": "\\udfff", "tags": "x\\ud800,\\u0000"}\n')
    (prompt,), _ = all_prompts(GenerateConfig(prompts_uri=f"file://{file}"), Settings())
    assert prompt == Prompt("a heart", tags=("x",))


def test_a_file_without_prompts_and_one_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for name, content in (("e.txt", "\n \n"), ("e.jsonl", ""), ("e.csv", ""), ("f.csv", "prompt,n\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(SourceError, match=rf"{name} holds no prompt"):
            all_prompts(GenerateConfig(prompts_uri=str(tmp_path / name)), Settings())
    with pytest.raises(SourceError, match="is not a file"):
        all_prompts(GenerateConfig(prompts_uri=str(tmp_path)), Settings())


def test_a_set_of_more_pictures_than_one_batch_holds_is_refused() -> None:
    """A hundred thousand rows of 10,000 pictures filled the memory before anything was drawn."""
    with pytest.raises(UsageError, match="6,000,000 pictures"):
        items_of([Prompt(str(i), n=10_000) for i in range(600)], GenerateConfig())


def test_repeated_prompts_are_drawn_once_and_white_space_is_folded(tmp_path: Path) -> None:
    config = GenerateConfig(prompts=("a  red heart", "a red heart", "b"))
    prompts, digest = all_prompts(config, Settings())
    assert [p.text for p in prompts] == ["a red heart", "b"] and digest == ""


def test_no_prompt_at_all_is_an_error() -> None:
    with pytest.raises(SourceError, match="no prompt"):
        all_prompts(GenerateConfig(), Settings())


def test_the_fingerprint_follows_the_content_of_the_file_and_not_its_place(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a\n")
    two.write_text("a\n")
    before = identity(GenerateConfig(prompts_uri=str(one)), Settings())
    assert identity(GenerateConfig(prompts_uri=str(two)), Settings()) == before
    two.write_text("b\n")
    assert identity(GenerateConfig(prompts_uri=str(two)), Settings()) != before
