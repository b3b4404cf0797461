"""The commands for one picture at a time, on the model of the tiny run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import TinyRun

from dalle_model.errors import SourceError, UsageError
from flows import drawing
from flows.cli import main
from flows.drawing import Ask
from tasks.settings import Settings


@pytest.fixture
def ask(tiny_run: TinyRun, tmp_path: Path) -> Ask:
    return Ask(Settings(store=tiny_run.store.uri), "latest", tmp_path / "out", n=2)


def checked(ask: Ask, result: tuple[dict[str, Any], list[str]], names: list[str]) -> dict[str, Any]:
    payload, lines = result
    assert sorted(p.name for p in ask.out.glob("*.png")) == sorted([*names, "contact_sheet.png"])
    assert json.loads((ask.out / "drawing.json").read_text()) == payload
    assert len(payload["model"]) == 64 and lines
    return payload


def a_picture(folder: Path) -> Path:
    path = folder / "given picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


def test_complete_keeps_the_top_by_share_and_by_mask(ask: Ask, tmp_path: Path) -> None:
    given = a_picture(tmp_path)
    names = ["a-red-heart-0.png", "a-red-heart-1.png"]
    checked(ask, drawing.complete(ask, given, "a red heart", 0.5, None), names)
    by_share = [(ask.out / name).read_bytes() for name in names]
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[32:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    checked(ask, drawing.complete(ask, given, "a red heart", 0.9, tmp_path / "mask.png"), names)
    assert [(ask.out / name).read_bytes() for name in names] == by_share


def test_commands_compute_as_a_step_does_and_refuse_an_empty_prompt(ask: Ask) -> None:
    """Equal pictures are promised for equal types and threads; both were chosen anew here."""
    settings = ask.settings.model_copy(update={"dtype": "bfloat16", "threads": 2})
    runtime = drawing.studio_of(replace(ask, settings=settings), "a heart")[0].runtime
    torch.set_num_threads(1)
    assert (runtime.dtype, runtime.threads) == (torch.bfloat16, 2)
    with pytest.raises(UsageError, match="no prompt"):
        drawing.best_of(ask, " \u200b", 2, "")


def test_options_that_do_not_go_together_are_told_in_their_own_names(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="--n 2 of --best-of 1"):
        drawing.best_of(ask, "red heart", 1, "")
    with pytest.raises(SystemExit) as end:
        main(["generate", "red heart", "--clip", "folder"])
    assert end.value.code == 2 and "--best-of 32" in capsys.readouterr().err


def test_vary_draws_what_the_prompt_says(ask: Ask, tmp_path: Path) -> None:
    payload = checked(
        ask,
        drawing.vary(ask, a_picture(tmp_path), "blue heart", 0.5),
        ["given-picture-0.png", "given-picture-1.png"],
    )
    assert payload["prompt"] == "blue heart"


def test_explain_writes_a_sheet_beside_each_picture(ask: Ask) -> None:
    names = [f"red-heart-{i}{kind}.png" for i in range(2) for kind in ("", ".explained")]
    payload = checked(ask, drawing.explained(ask, "red heart"), names)
    assert np.shape(payload["surprise_nats"])[0] == 2 and np.min(payload["surprise_nats"]) >= 0


def test_what_a_model_was_not_trained_for_is_said(ask: Ask) -> None:
    """The tiny model never read a picture before its caption."""
    with pytest.raises(UsageError, match="image_first_share"):
        drawing.best_of(ask, "red heart", 3, "")
    with pytest.raises(UsageError, match="image_first_share"):
        drawing.loop(ask, "red heart", 1, 1, -1.0)


def test_text_goes_on_from_its_beginning(ask: Ask) -> None:
    _, texts = drawing.continue_text(ask, "red", "", False)
    assert len(texts) == 2 and all(t.startswith("red") for t in texts)


def test_a_missing_picture_is_named(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.png is not a file"):
        drawing.caption(ask, [tmp_path / "none.png"])


def test_pictures_tell_their_origin_and_the_prompt_policy_holds_here_too(ask: Ask) -> None:
    checked(
        ask,
        drawing.explained(ask, "red heart"),
        [f"red-heart-{i}{kind}.png" for i in range(2) for kind in ("", ".explained")],
    )
    with Image.open(ask.out / "red-heart-1.png") as picture:
        assert picture.info["Comment"] == "AI generated"
        about = json.loads(picture.info["dalle-prefect"])
    assert about["index"] == 1 and len(about["model"]) == 64
    with pytest.raises(UsageError, match="profanity"):
        drawing.best_of(ask, "f\u200buck", 2, "")
