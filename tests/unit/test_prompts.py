"""Prompt files."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_model.config import GenerateConfig
from dalle_model.errors import SourceError
from tasks.generate import identity
from tasks.prompts import Prompt, all_prompts, parse_prompts
from tasks.settings import Settings


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
    assert parse_prompts("\n".join(__import__("json").dumps(r) for r in rows).encode(), "p.jsonl") == expected
    assert (
        parse_prompts(b'prompt,n,seed,tags,negative\na red heart,2,7,"love,red",blue\na clock,,,,\n', "p.csv")
        == expected
    )
    assert parse_prompts(b"a red heart\n\na clock\n", "p.txt") == [Prompt("a red heart"), Prompt("a clock")]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("p.doc", b"x", "txt, jsonl, csv or parquet"),
        ("p.txt", b"\xff\xfe\xfa", "cannot be read"),
        ("p.jsonl", b'{"prompt": "a"}\n{oops', "cannot be read"),
        ("p.jsonl", b'{"other": "a"}', "row 1: no text column"),
        ("p.csv", b"prompt,n\na,zero\n", "'zero' is not a whole number"),
        ("p.csv", b"prompt,n\na,0\n", "at least 1"),
        ("p.parquet", b"PAR1 no", "cannot be read"),
    ],
)
def test_a_bad_file_is_named_with_its_place(name: str, data: bytes, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        parse_prompts(data, name)


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
