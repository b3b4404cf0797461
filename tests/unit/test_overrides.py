"""``--set section.key=value``."""

import json

import pytest

from dalle_model.config import GenerateConfig, PipelineConfig, SamplerChange, SamplerConfig
from dalle_model.errors import UsageError
from flows.overrides import allowed_range, override


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


STORED = SamplerConfig(temperature=0.5, guidance=1.5, guidance_to=40)


@pytest.mark.parametrize("section", ["generate", "evaluate"])
def test_a_key_of_the_sampler_changes_that_key_and_leaves_the_others_as_stored(section: str) -> None:
    change = getattr(override(PipelineConfig(), [f"{section}.sampler.top_k=7"]), section).sampler
    assert change.over(STORED) == STORED.model_copy(update={"top_k": 7})
    # a knob set to its default is set all the same, and after a round trip, too
    reset = getattr(override(PipelineConfig(), [f"{section}.sampler.guidance=1"]), section)
    again = type(reset).model_validate_json(reset.model_dump_json())
    assert again.sampler.over(STORED) == STORED.model_copy(update={"guidance": 1.0})
    assert again.digest() == reset.digest() != type(reset)().digest()


def test_no_change_a_whole_sampler_and_two_that_do_not_go_together() -> None:
    assert SamplerChange.model_validate(None) == SamplerChange() == GenerateConfig().sampler
    assert SamplerChange().over(STORED) == STORED
    assert SamplerChange.model_validate(SamplerConfig()).over(STORED) == SamplerConfig()
    with pytest.raises(UsageError, match=r"sampler.guidance_from=50: guidance_to 40 must be above guidance_from 50"):
        SamplerChange(guidance_from=50).over(STORED)


def test_a_change_has_the_knobs_and_bounds_of_the_sampler() -> None:
    whole, change = SamplerConfig.model_fields, SamplerChange.model_fields
    assert {n: str(f.metadata) for n, f in change.items()} == {n: str(f.metadata) for n, f in whole.items()}
    for name, field in whole.items():
        words = (field.description or "").split(";")[0].split(":")[0].rstrip(".")
        assert allowed_range(change[name]) == allowed_range(field)
        assert name == "weights" or (change[name].description or "").startswith(words)


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
        ("train.betas=[0.9,1]", ["train.betas=[0.9,1]", "less than 1"]),
        (
            f"tokenizer={json.dumps({'image_px': 8, 'perceptual_file': 'vgg', 'perceptual_sha256': 'a' * 64})}",
            ["image_px 8", "at least 16"],
        ),
        ("tokenizer.fsq_levels=[]", ["fsq_levels ()", "one dimension at least"]),
        ("train.text_loss_share=1", ["text_loss_share 1", "objective text"]),
    ],
)
def test_an_error_names_the_value_and_what_is_allowed(assignment: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        override(PipelineConfig(), [assignment])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
