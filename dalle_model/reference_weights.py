"""Published weights of the paper's dVAE, read into ours: OpenAI's own files and transformers' ``FlavaImageCodebook``.

Both use the structure of openai/DALL-E (encoder.py, decoder.py, utils.py); only names differ.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle_model.config import TokenizerConfig
from dalle_model.errors import DataError
from dalle_model.tokenizers.dvae import DvaeEncoder, DvaeTokenizer

_BLOCK = re.compile(r"blocks\.group_(\d+)\.block_(\d+)\.(id_path|res_path\.conv_\d)\.(weight|bias)")


def from_flava_codebook(module: nn.Module) -> DvaeEncoder:
    """Our encoder with the weights of a ``transformers.FlavaImageCodebook``: same logits, same ids, in eval mode.

    The module takes pixels that are already mapped (``dvae.map_pixels``), as ours does. Raises DataError when the
    module's tensors are not those of that network.
    """
    names = {k.replace(".group.", ".").replace(".path.", "."): v for k, v in module.state_dict().items()}
    config = _config_of(names, "FlavaImageCodebook", image_px=112)
    encoder = DvaeEncoder(config)
    _load(encoder, _rename(names), "FlavaImageCodebook")
    return encoder.eval()


def load_openai_dvae(encoder_path: Path, decoder_path: Path, image_px: int = 256) -> DvaeTokenizer:
    """A tokenizer from OpenAI's ``encoder.pkl`` and ``decoder.pkl``, without executing anything those files say.

    The files are pickles of whole modules. They are read by torch's weights-only reader, in which every class name
    they use stands for an inert record, so only tensors and plain values come out. Raises DataError when a file is
    of another kind, or asks for anything but those classes.
    """
    encoder_names = {_plain(k): v for k, v in _read_inert(encoder_path).items()}
    decoder_names = {_plain(k): v for k, v in _read_inert(decoder_path).items()}
    config = _config_of(encoder_names, str(encoder_path), image_px)
    tokenizer = DvaeTokenizer(config)
    _load(tokenizer.encoder, _rename(encoder_names), str(encoder_path))
    _load(tokenizer.decoder, _rename(decoder_names), str(decoder_path))
    return tokenizer.eval()


class _Record:
    """Stands for any module class while a pickle is read: keeps its attributes, runs nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


_INERT = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)


def _read_inert(path: Path) -> dict[str, Tensor]:
    """Parameters by dotted name of the module that a pickle describes."""
    # one class object per name: the reader looks classes up by identity
    stand_ins = [(type(f"Record{i}", (_Record,), {}), name) for i, name in enumerate(_INERT)]
    try:
        with torch.serialization.safe_globals([*stand_ins, set, torch.device]):  # type: ignore[arg-type]
            root = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        lines = [line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
        reason = (lines or str(error).splitlines() or ["unreadable"])[0].strip()
        raise DataError(
            f"{path} is not OpenAI's dVAE ({reason[:160]}); use the published encoder.pkl and decoder.pkl"
        ) from error
    if not isinstance(root, _Record):
        raise DataError(
            f"{path} holds a {type(root).__name__}, not a module; use the published encoder.pkl and decoder.pkl"
        )
    return dict(_walk(root, ""))


def _walk(record: _Record, prefix: str) -> list[tuple[str, Tensor]]:
    found = [(prefix + k, v.detach()) for k, v in record.__dict__.get("_parameters", {}).items() if v is not None]
    for name, child in record.__dict__.get("_modules", {}).items():
        found += _walk(child, f"{prefix}{name}.")
    return found


def _plain(name: str) -> str:
    """OpenAI's convolutions call their tensors w and b."""
    return re.sub(r"\.w$", ".weight", re.sub(r"\.b$", ".bias", name))


def _config_of(names: Mapping[str, Tensor], source: str, image_px: int) -> TokenizerConfig:
    matches = [m for m in map(_BLOCK.fullmatch, names) if m]
    if not matches or "blocks.input.weight" not in names or "blocks.output.conv.weight" not in names:
        raise DataError(
            f"{source} does not hold the tensors of the paper's dVAE encoder; expected blocks.input, blocks.group_1, ..."
        )
    num_groups = max(int(m[1]) for m in matches)
    return TokenizerConfig(
        kind="dvae",
        image_px=image_px,
        downsampling=2 ** (num_groups - 1),
        num_codes=names["blocks.output.conv.weight"].shape[0],
        width=names["blocks.input.weight"].shape[0],
        blocks_per_group=max(int(m[2]) for m in matches),
    )


def _rename(names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in names.items():
        match = _BLOCK.fullmatch(name)
        if match:
            place = f"groups.{int(match[1]) - 1}.{int(match[2]) - 1}"
            inner = "identity" if match[3] == "id_path" else f"body.{match[3].removeprefix('res_path.')}"
            renamed[f"{place}.{inner}.{match[4]}"] = tensor
        else:
            renamed[name.removeprefix("blocks.").replace("output.conv.", "output.")] = tensor
    return renamed


def _load(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(f"{source} does not fit the paper's dVAE: {' '.join(str(error).split())[:200]}") from error
