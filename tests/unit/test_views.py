"""Files that a person finds: their names, and that they belong together."""

import threading
from pathlib import Path

import pytest

from dalle_model.errors import UsageError
from flows.views import only_writer, slug, write_whole
from tasks.generate import first_rows


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red heart, please!", "a-red-heart-please"),
        ("../../etc/passwd\0", "etc-passwd"),
        ("красная собака бежит", "красная-собака-бежит"),
        ("一只红色的狗，在草地上", "一只红色的狗-在草地上"),
        ("लाल कुत्ता", "लाल-कुत्ता"),  # vowel signs are marks, not letters
        ("\u202egnp.exe❤️", "gnp-exe"),
        ("❤", "prompt"),
    ],
)
def test_a_picture_is_named_after_its_prompt_in_any_script(prompt: str, name: str) -> None:
    assert slug(prompt) == name


@pytest.mark.parametrize("letter", ["a", "ж", "狗", "𠀋"])
def test_a_name_fits_a_file_system_and_ends_in_a_whole_letter(letter: str) -> None:
    name = slug(letter * 500)
    assert 45 <= len(name) <= 60 and len(name.encode()) <= 180 and set(name) == {letter}


def test_two_commands_do_not_write_into_one_folder_at_once(tmp_path: Path) -> None:
    """A page of one and pictures of the other lay there."""
    wrote: list[str] = []

    def other() -> None:
        with only_writer(tmp_path / "out"):
            wrote.append("other")

    thread = threading.Thread(target=other)
    with only_writer(tmp_path / "out"):
        thread.start()
        thread.join(0.2)
        wrote.append("first")
    thread.join(120)
    assert wrote == ["first", "other"]


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()  # as a full disk: an error of the system after the first bytes
    with pytest.raises(UsageError, match=r"a\.png cannot be written"):
        write_whole(tmp_path / "a.png", b"picture")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_gallery_is_bounded_in_pictures_and_in_bytes() -> None:
    rows = [{"image": b"12345"}] * 10
    assert len(first_rows(iter(rows), 4, 1000)) == 4
    assert len(first_rows(iter(rows), 100, 17)) == 3
    assert len(first_rows(iter(rows), 100, 1)) == 1
