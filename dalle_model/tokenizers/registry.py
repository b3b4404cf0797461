"""Build, save and load image tokenizers by configuration: safetensors and JSON only."""

import json
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from dalle_model.config import TokenizerConfig
from dalle_model.errors import DataError
from dalle_model.tokenizers.base import ImageTokenizer
from dalle_model.tokenizers.dvae import DvaeTokenizer
from dalle_model.tokenizers.fsq import FsqTokenizer
from dalle_model.tokenizers.vq import VqTokenizer

_KINDS: dict[str, type[ImageTokenizer]] = {"fsq": FsqTokenizer, "vq": VqTokenizer, "dvae": DvaeTokenizer}


def build_tokenizer(config: TokenizerConfig, generator: torch.Generator | None = None) -> ImageTokenizer:
    """A tokenizer with fresh weights; with ``generator`` they are a pure function of its seed."""
    seed = int(torch.randint(2**62, (1,), generator=generator)) if generator is not None else None
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return _KINDS[config.kind](config)


def tokenizer_to_bytes(tokenizer: ImageTokenizer) -> tuple[bytes, bytes]:
    """(weights as safetensors, config as JSON)."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tokenizer.state_dict().items()}
    return save_tensors(tensors), tokenizer.config.model_dump_json().encode()


def tokenizer_from_bytes(weights: bytes, config: bytes) -> ImageTokenizer:
    """The inverse of ``tokenizer_to_bytes``, in eval mode. DataError when weights and config do not fit each other."""
    tokenizer = build_tokenizer(TokenizerConfig(**json.loads(config)))
    try:
        tokenizer.load_state_dict(load_tensors(weights))
    except RuntimeError as error:
        raise DataError(
            f"tokenizer weights do not fit their config: {str(error).splitlines()[0]}; take both from one artifact"
        ) from error
    return tokenizer.eval()


def save(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Write ``weights.safetensors`` and ``config.json`` into ``folder`` (created when absent)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, config = tokenizer_to_bytes(tokenizer)
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "config.json").write_bytes(config)


def load(folder: Path) -> ImageTokenizer:
    """Read what ``save`` wrote."""
    return tokenizer_from_bytes((folder / "weights.safetensors").read_bytes(), (folder / "config.json").read_bytes())
