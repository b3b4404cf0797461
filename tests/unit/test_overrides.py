"""``--set section.key=value``."""

import pytest

from dalle_model.config import PipelineConfig
from dalle_model.errors import UsageError
from flows.overrides import override


def test_sections_of_the_fit_stage_are_named_directly_and_optimiser_keys_without_optim() -> None:
    config = override(
        PipelineConfig(),
        ["train.steps=7", "model.dim=64", "sampler.guidance=2", "tokenizer.lr=0.01", "fit.train.optim.seed=3"],
    )
    assert config.fit.train.optim.steps == 7
    assert config.fit.model.dim == 64
    assert config.fit.sampler.guidance == 2
    assert config.tokenizer.optim.lr == 0.01
    assert config.fit.train.optim.seed == 3


def test_values_are_json_and_text_stays_text() -> None:
    config = override(
        PipelineConfig(),
        ["tokenizer.fsq_levels=[8,8]", 'generate.prompts=["a"]', "ingest.source=123", "curate.drop_duplicates=false"],
    )
    assert config.tokenizer.fsq_levels == (8, 8)
    assert config.generate.prompts == ("a",)
    assert config.ingest.source == "123"
    assert config.curate.drop_duplicates is False


def test_an_optional_section_is_made_when_one_of_its_keys_is_set() -> None:
    assert PipelineConfig().generate.sampler is None
    sampler = override(PipelineConfig(), ["generate.sampler.temperature=0.5"]).generate.sampler
    assert sampler is not None and sampler.temperature == 0.5


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.steps=0", ["train.steps=0", ">= 1"]),
        ("train.optim.schedule=sqare", ["one of", "cosine"]),
        ("train.stepz=5", ["unknown key", "steps"]),
        ("nosection.key=5", ["unknown key", "ingest"]),
        ("train=5", ["train"]),
        ("train.steps", ["section.key=value"]),
        ("train.steps=many", ["train.steps=many", "int"]),
        ("model.dim=250", ["model.dim=250", "multiple"]),
        ("tokenizer.image_px=50", ["tokenizer", "multiple"]),
        ("train.steps.more=5", ["is a value"]),
    ],
)
def test_an_error_names_the_value_and_what_is_allowed(assignment: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        override(PipelineConfig(), [assignment])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
