"""What enters a fingerprint, for stages whose config names a place outside the store. Loads no torch."""

import hashlib
from typing import Any

from dalle_model.config import ImportTokenizerConfig, TokenizerConfig
from dalle_model.errors import SourceError
from dalle_model.sources.telling import Tell, silent
from tasks.prompts import read_uri
from tasks.settings import Settings


def of_tokenizer(
    config: TokenizerConfig, settings: Settings, tell: Tell = silent
) -> tuple[dict[str, Any], dict[str, str]]:
    """The config without the place of the perceptual weights: their declared hash counts."""
    return config.model_dump(mode="json", exclude={"perceptual_file"}), {}


def of_imported(
    config: ImportTokenizerConfig, settings: Settings, tell: Tell = silent
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the two files hold, not where they lie. Raises SourceError when one is not there."""
    digests = {}
    for name, uri in (("encoder", config.encoder), ("decoder", config.decoder)):
        try:
            digests[name] = hashlib.sha256(read_uri(uri, settings)).hexdigest()
        except SourceError as error:
            raise SourceError(f"the {name} {uri} cannot be read; give the place of OpenAI's {name}.pkl") from error
    return config.model_dump(mode="json", exclude={"encoder", "decoder"}), digests
