"""What enters a fingerprint, for stages whose config names a place outside the store. Loads no torch."""

from typing import Any

from dalle_model.config import TokenizerConfig
from tasks.settings import Settings


def of_tokenizer(config: TokenizerConfig, settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """The config without the place of the perceptual weights: their declared hash counts."""
    return config.model_dump(mode="json", exclude={"perceptual_file"}), {}
