"""Causal language models through transformers: from a folder, without running anybody's code."""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from dalle_model.captions import train_bpe
from dalle_model.config import SamplerConfig
from dalle_model.errors import DataError, SourceError
from dalle_model.language_models import LanguageModel, one_line

pytestmark = pytest.mark.xdist_group("transformers")  # the first use of a model imports for seconds

GREEDY = SamplerConfig(temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with random weights, and a tokenizer, as ``save_pretrained`` writes them."""
    path = tmp_path_factory.mktemp("gpt2")
    captions = ["a red heart", "a clown face", "a blue heart on a red cushion"] * 3
    words = Tokenizer.from_str(train_bpe(captions, 320).decode())
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=words.get_vocab_size(), n_positions=160, n_embd=32, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return LanguageModel.from_pretrained(folder)


def test_texts_begin_with_their_prompts_and_belong_to_their_seed(model: LanguageModel) -> None:
    state = torch.get_rng_state()
    texts = model.continue_text(["a red", "a clown"], n=3, seed=4, max_new_tokens=8)
    assert torch.equal(torch.get_rng_state(), state), "the random state of the caller is left alone"
    assert all(t.startswith(p) for p, row in zip(["a red", "a clown"], texts, strict=True) for t in row)
    assert len(set(texts[0])) == 3
    assert model.continue_text(["a clown"], n=1, seed=4, max_new_tokens=8)[0][0] == texts[1][0]  # alone: the same
    assert model.continue_text(["a clown"], n=1, seed=5, max_new_tokens=8)[0][0] != texts[1][0]


def test_greedy_is_what_the_model_itself_finds_most_probable(model: LanguageModel) -> None:
    ids = model.tokenizer("a red", return_tensors="pt").input_ids
    with torch.no_grad():
        for _ in range(5):
            ids = torch.cat([ids, model.model(ids).logits[:, -1:].argmax(-1)], dim=1)
    (text,) = model.continue_text(["a red"], sampler=GREEDY, max_new_tokens=5)[0]
    assert text == "a red" + model.tokenizer.decode(ids[0, -5:], skip_special_tokens=True)


def test_expanded_prompts_are_one_line_and_keep_the_prompt(model: LanguageModel, folder: Path) -> None:
    rows = model.expand(["a red heart"], n=4, examples=[("a cat", "a cat on a mat")], max_new_tokens=6)
    assert all(t.startswith("a red heart") and "\n" not in t for t in rows[0]) and len(set(rows[0])) > 1
    chat = LanguageModel.from_pretrained(folder)
    chat.tokenizer.chat_template = "{% for m in messages %}{{ m.content[-22:] }}{% endfor %}"
    assert all("Prompt:" not in t and t for t in chat.expand(["a red heart"], n=2, max_new_tokens=6)[0])
    assert one_line(' "a  red\n heart" ') == "a red heart"


def test_score_is_the_sum_of_the_log_probabilities(model: LanguageModel) -> None:
    one, two = model.score_text(["a", "a red heart"])
    ids = model.tokenizer("a red heart", return_tensors="pt").input_ids
    with torch.no_grad():
        loss = float(model.model(ids, labels=ids).loss)
    assert two == pytest.approx(-loss * (ids.shape[1] - 1), rel=1e-4)
    assert math.isfinite(one)


def test_too_long_missing_and_foreign_models_are_refused_in_words(
    model: LanguageModel, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="the model reads 160 and 1 are to follow"):
        model.continue_text(["a red heart " * 90])
    with pytest.raises(SourceError, match="cannot be loaded as a causal language model"):
        LanguageModel.from_pretrained(tmp_path / "nothing", local_files_only=True)
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(model.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match="safetensors"):
        LanguageModel.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "strange.Strange"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "strange.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(SourceError, match="cannot be loaded"):
        LanguageModel.from_pretrained(tmp_path)
