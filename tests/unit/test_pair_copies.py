"""Augmented copies of pairs: pure, within the meaning, and traceable to their pair."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.tiny import TinyRun, section_of, tiny_config

from dalle_model.config import AugmentConfig
from dalle_model.pair_copies import all_words, augment, augment_image, may_be_mirrored, may_change_tone
from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import run_step
from tasks.store import Store

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 255, (60, 80, 3)).astype(np.uint8)
FACTS = {"aliases": ["pooch", "a dog"], "tags": "pet; animal, dog"}
ALL = AugmentConfig(
    copies=8, templates=("a picture of {}", "{} as an icon"), aliases=0.5, keywords=0.5, colour=0.2, crop=0.2
)


def test_a_copy_is_a_function_of_seed_pair_and_number_alone() -> None:
    seen = set()
    for pair in ("aa", "bb"):
        for copy in range(1, 6):
            image, caption = augment(PICTURE, "a dog", FACTS, pair, copy, ALL)
            again, said = augment(PICTURE, "a dog", FACTS, pair, copy, ALL.model_copy(update={"copies": 3}))
            assert (again == image).all() and said == caption
            seen.add(image.tobytes())
    assert len(seen) == 10
    other, _ = augment(PICTURE, "a dog", FACTS, "aa", 1, ALL.model_copy(update={"seed": 1}))
    assert other.shape != (0,) and other.tobytes() not in seen
    image, caption = augment(PICTURE, "a dog", FACTS, "aa", 0, ALL)
    assert caption == "a dog" and (image == PICTURE[:, 10:70]).all(), "copy 0 is the pair itself"


def test_captions_come_from_the_source_and_the_templates_and_from_nowhere_else() -> None:
    said = {augment(PICTURE, "a dog", FACTS, f"{n}", 1, ALL)[1] for n in range(300)}
    names = {f"{name}{word}" for name in ("a dog", "pooch") for word in ("", ", pet", ", animal", ", dog")}
    allowed = {form.format(name) for form in ("{}", *ALL.templates) for name in names}
    assert said <= allowed and not any("a dog, dog" in text for text in said)
    assert {"a dog", "pooch", "a dog, pet", "a picture of a dog", "pooch, animal as an icon"} <= said
    plain = AugmentConfig(copies=1)
    assert {augment(PICTURE, "a dog", FACTS, f"{n}", 1, plain)[1] for n in range(20)} == {"a dog"}
    with pytest.raises(ValueError, match="the place of the caption"):
        AugmentConfig(templates=("a picture",))


NEVER = [
    "flag: Italy", "the flags of many nations", "left arrow", "a sign that says stop", "three o’clock", "wall clocks",
    "keycap: 5", 'a wall with "hello" on it', "a page of text", "new button", "a right-facing fist", "world map", "row of 3 ducks",
    "the number of the beast", "a T-shirt with the word 'peace'", "newspapers on a table",
    "coat of arms of Kent", "a car with its license plates", "Number plate", "foreign currencies", "graffiti in Berlin",
]  # fmt: skip
MAY = [
    "a red heart",
    "a dog in the grass",
    "woman firefighter: dark skin tone",
    "upright piano",
    "bright flagstone path",
    "watchful owl",
]


@pytest.mark.parametrize("caption", NEVER)
def test_what_a_mirror_would_falsify_is_never_mirrored(caption: str) -> None:
    assert not may_be_mirrored(caption)
    config = AugmentConfig(copies=1, crop=0, colour=0)
    assert all((augment_image(PICTURE, caption, f"{n}", 1, config) == PICTURE[:, 10:70]).all() for n in range(20))


@pytest.mark.parametrize("caption", MAY)
def test_other_pictures_are_mirrored_half_of_the_time(caption: str) -> None:
    config = AugmentConfig(copies=1, crop=0, colour=0)
    made = [augment_image(PICTURE, caption, f"{n}", 1, config) for n in range(60)]
    mirrored = [bool((image == PICTURE[:, 10:70][:, ::-1]).all()) for image in made]
    assert 15 < sum(mirrored) < 45
    assert all(m or (image == PICTURE[:, 10:70]).all() for m, image in zip(mirrored, made, strict=True))
    still = config.model_copy(update={"mirror": False})
    assert all((augment_image(PICTURE, caption, f"{n}", 1, still) == PICTURE[:, 10:70]).all() for n in range(9))


def test_other_names_of_a_thing_count_as_well() -> None:
    config = AugmentConfig(copies=1, crop=0, colour=0)
    for facts in ({"aliases": ["flag of France"]}, {"keywords": "nation, flag"}):
        made = [augment(PICTURE, "France", facts, f"{n}", 1, config)[0] for n in range(20)]
        assert all((image == PICTURE[:, 10:70]).all() for image in made), facts
    assert all_words("a", {"aliases": ["b"], "keywords": "c, d"}) == "a; b; c; d"


def test_crops_stay_within_their_share_and_tones_where_the_caption_speaks_of_them() -> None:
    config = AugmentConfig(copies=1, crop=0.25, colour=0, mirror=False)
    sides = {augment_image(PICTURE, "a dog", f"{n}", 1, config).shape[0] for n in range(200)}
    assert min(sides) >= 45 and max(sides) <= 60 and len(sides) > 8
    toned = AugmentConfig(copies=1, crop=0, colour=0.3, mirror=False)
    assert not may_change_tone("man: light skin tone") and may_change_tone("a lighthouse")
    assert (augment_image(PICTURE, "man: light skin tone", "a", 1, toned) == PICTURE[:, 10:70]).all()
    assert (augment_image(PICTURE, "a lighthouse", "a", 1, toned) != PICTURE[:, 10:70]).any()


@dataclass
class Encoded:
    rows: list[dict[str, Any]]
    sha256: str


def encoded(tiny: TinyRun, folder: Path, *sets: str) -> Encoded:
    store = tiny.copy(folder / "artifacts", before="encode")
    config = section_of("encode", tiny_config(*sets))
    result = run_step(
        STAGES["encode"], config, tiny.inputs("encode"), Settings(store=str(store), spool=folder / "spool")
    )
    opened = Store.open(store)
    manifest = opened.find("encode", result.ref.fingerprint)
    assert manifest is not None
    rows = [r for o in manifest.objects_of("tokens") for r in pq.read_table(io.BytesIO(opened.read(o))).to_pylist()]
    return Encoded(rows, manifest.sha256)


@pytest.mark.usefixtures("steps_here")
def test_copies_are_extra_token_rows_of_training_pairs_that_name_their_pair(tiny_run: TinyRun, tmp_path: Path) -> None:
    sets = ("encode.augment.copies=2", 'encode.augment.templates=["an icon of {}"]', "encode.augment.aliases=1")
    made = encoded(tiny_run, tmp_path / "a", *sets)
    plain = {
        row["id"]: row
        for o in tiny_run.manifest("encode").objects_of("tokens")
        for row in pq.read_table(io.BytesIO(tiny_run.store.read(o))).to_pylist()
    }
    assert {row["augmentation"] for row in plain.values()} == {0}
    numbers: dict[str, list[int]] = {}
    for row in made.rows:
        numbers.setdefault(row["id"], []).append(row["augmentation"])
        assert row["split"] == plain[row["id"]]["split"]
        if row["augmentation"] == 0:
            assert (row["caption"], row["image_tokens"]) == (
                plain[row["id"]]["caption"],
                plain[row["id"]]["image_tokens"],
            )
    assert numbers.keys() == plain.keys()
    assert all(n == ([0, 1, 2] if plain[i]["split"] == "train" else [0]) for i, n in numbers.items())
    copies = [row for row in made.rows if row["augmentation"]]
    assert any(row["image_tokens"] != plain[row["id"]]["image_tokens"] for row in copies)
    assert any(row["caption"].startswith("an icon of ") for row in copies)
    assert encoded(tiny_run, tmp_path / "b", *sets).sha256 == made.sha256
