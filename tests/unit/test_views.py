"""Names of files that a person finds."""

import pytest

from flows.views import slug


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
