"""A GPT of captions by one command, and training that starts from a model."""

import json
from pathlib import Path

import pytest
from support.commands import dalle
from support.tiny import TinyRun, command_sets

from dalle_model.dalle import dalle_from_bytes
from tasks.store import Store

pytestmark = pytest.mark.usefixtures("steps_here")


def test_text_is_learnt_first_then_pictures_from_the_same_weights(tiny_run: TinyRun, tmp_path: Path) -> None:
    folder = tiny_run.copy(tmp_path / "artifacts", before="fit")
    store = Store.open(folder)
    tokens = tiny_run.results["encode"].ref.fingerprint
    common = ["--store", str(folder), "--preset", "tiny", *command_sets(), "--json"]
    said = dalle("fit", tokens, "--set", "train.objective=text", *common)
    assert said.code == 0, said.err
    text = json.loads(said.out.splitlines()[-1])["artifacts"]["fit"]["fingerprint"]
    made = store.find("fit", text)
    assert made is not None and "loss_text_train" in made.stats and "loss_image_train" not in made.stats
    assert made.stats["loss_text_train"] < made.stats["references"]["nothing learnt (ln K)"]

    said = dalle("generate", "red heart", "--model", text, "--out", str(tmp_path / "out"), *common)
    assert said.code == 2 and "trained for text, not for text to image" in said.err

    # the preset asks for another width: the model's own shape is taken without a word
    said = dalle("fit", tokens, "--init-from", text, "--store", str(folder), *command_sets(), "--json")
    assert said.code == 0, said.err
    tuned = store.find("fit", json.loads(said.out.splitlines()[-1])["artifacts"]["fit"]["fingerprint"])
    assert tuned is not None and [(i.name, i.fingerprint) for i in tuned.inputs] == [
        ("tokens", tokens),
        ("model", text),
    ]
    model = dalle_from_bytes(*(store.read(tuned.object_of(r)) for r in ("weights", "config")))
    assert model.config.dim == 64 and model.directions == ("text_to_image", "text")

    said = dalle("fit", tokens, "--init-from", text, "--set", "model.depth=1", *common)
    assert said.code == 1 and "model.depth is 1, the model to start from has 2" in said.err
