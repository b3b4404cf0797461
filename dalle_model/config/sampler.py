"""How a token is drawn, and changes of that: some knobs set, the others as stored with the model."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from dalle_model.config.base import Section
from dalle_model.errors import UsageError


class SamplerConfig(Section):
    """How a token is drawn from the logits. Stored with every model and every picture."""

    temperature: float = Field(1.0, ge=0, le=10, description="0 = the most probable token.")
    top_k: int = Field(0, ge=0, description="Draw among the k most probable tokens, 0 = all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw among the most probable tokens that together reach this probability."
    )
    guidance: float = Field(1.0, ge=0, le=50, description="Classifier-free guidance; 1 = off.")
    min_p: float = Field(
        0.0, ge=0, lt=1, description="Draw among tokens of at least this share of the best one's probability, 0 = all."
    )
    guidance_from: int = Field(
        0, ge=0, le=65536, description="First image token with guidance; before it the caption alone decides."
    )
    guidance_to: int = Field(
        0, ge=0, le=65536, description="First image token without guidance again, 0 = guided to the end."
    )
    weights: Literal["full", "half", "int8"] = Field(
        "full",
        description="full: as trained, in the device's type. half: 16-bit weights and cache, sums in float32 on a CPU. int8: each layer's weights rounded to 8 bits with a scale per output, on a CPU the cache, too; the fastest there.",
    )

    @model_validator(mode="after")
    def _interval(self) -> Self:
        if 0 < self.guidance_to <= self.guidance_from:
            raise ValueError(
                f"guidance_to {self.guidance_to} must be above guidance_from {self.guidance_from}, or 0 for the end"
            )
        return self


class SamplerChange(Section):
    """Knobs of the sampler that a step sets; None = as stored with the model. Bounds are those of ``SamplerConfig``."""

    temperature: float | None = Field(
        None, ge=0, le=10, description="0 = the most probable token. None: as stored with the model."
    )
    top_k: int | None = Field(
        None, ge=0, description="Draw among the k most probable tokens, 0 = all. None: as stored with the model."
    )
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Draw among the most probable tokens that together reach this probability. None: as stored with the model.",
    )
    guidance: float | None = Field(
        None, ge=0, le=50, description="Classifier-free guidance; 1 = off. None: as stored with the model."
    )
    min_p: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Draw among tokens of at least this share of the best one's probability, 0 = all. None: as stored with the model.",
    )
    guidance_from: int | None = Field(
        None, ge=0, le=65536, description="First image token with guidance. None: as stored with the model."
    )
    guidance_to: int | None = Field(
        None,
        ge=0,
        le=65536,
        description="First image token without guidance again, 0 = guided to the end. None: as stored with the model.",
    )
    weights: Literal["full", "half", "int8"] | None = Field(
        None,
        description="Weights to draw with, as trained, in float16 or rounded to 8 bits. None: as stored with the model.",
    )

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, values: Any) -> Any:
        """A whole sampler sets every knob; nothing sets none."""
        if values is None:
            return {}
        return values.model_dump() if isinstance(values, SamplerConfig) else values

    def over(self, stored: SamplerConfig) -> SamplerConfig:
        """The stored sampler with these knobs set. UsageError when the two together make none."""
        changed = self.model_dump(exclude_none=True)
        try:
            return SamplerConfig.model_validate(stored.model_dump() | changed)
        except ValidationError as error:
            words = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UsageError(
                f"the sampler stored with the model does not go with {', '.join(f'sampler.{k}={v}' for k, v in changed.items())}: "
                f"{words}; set both"
            ) from None
