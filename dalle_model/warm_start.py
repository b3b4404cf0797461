"""Fresh weights replaced by those of a trained model: fine-tuning on new captions and pictures."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle_model.captions import CaptionTokenizer
from dalle_model.config import ModelConfig
from dalle_model.dalle import IMAGE_PARTS, Dalle, DalleShape
from dalle_model.errors import DataError

_TEXT_TABLES = ("text_embed.weight", "text_head.weight")


@dataclass(frozen=True)
class WarmStart:
    """What was taken over: parameters copied whole, text tokens known to the source, and those spelled by its pieces."""

    copied: int
    known_tokens: int
    spelled_tokens: int
    fresh: tuple[str, ...]


@torch.no_grad()
def start_from(model: Dalle, source: Dalle, words: CaptionTokenizer, source_words: CaptionTokenizer) -> WarmStart:
    """Give ``model`` the weights of ``source``, in place.

    The caption vocabularies may differ: a token that the source lacks starts as the mean of the pieces that spell it
    there. A source trained on text alone leaves the picture's parameters fresh, whatever its image vocabulary.
    DataError when architecture, text length or (for a source trained on pictures) image tokens differ.
    """
    text_only = source.directions == ("text",)
    _check(model.config, source.config, model.shape, source.shape, text_only)
    spelling = words.spelled_by(source_words)
    given, fresh, copied = source.state_dict(), [], 0
    for name, value in model.state_dict().items():
        if name in _TEXT_TABLES:
            value.copy_(_respelled(given[name], spelling))
        elif text_only and name.split(".")[0] in IMAGE_PARTS:
            fresh.append(name)
        elif text_only and name == "position_embed":
            text_places = model.shape.max_text_tokens + 1
            value[:text_places] = given[name][:text_places]
        else:
            value.copy_(given[name])
            copied += 1
    known = sum(len(ids) == 1 for ids in spelling)
    return WarmStart(copied, known, len(spelling) - known, tuple(fresh))


def _respelled(table: Tensor, spelling: list[list[int]]) -> Tensor:
    """Rows of another vocabulary: the mean of the source's rows [V, dim] that spell each token -> [V', dim]."""
    ids = torch.tensor([i for row in spelling for i in row])
    starts = torch.tensor([0, *(len(row) for row in spelling[:-1])]).cumsum(0)
    return F.embedding_bag(ids, table, starts, mode="mean")


def _check(config: ModelConfig, source: ModelConfig, shape: DalleShape, given: DalleShape, text_only: bool) -> None:
    ours, theirs = config.model_dump(exclude={"dropout"}), source.model_dump(exclude={"dropout"})
    for name, value in ours.items():
        if value != theirs[name]:
            raise DataError(
                f"model.{name} is {value}, the model to start from has {theirs[name]}; set model.{name}={theirs[name]}"
            )
    if shape.max_text_tokens != given.max_text_tokens:
        raise DataError(
            f"the tokens have {shape.max_text_tokens} text positions, the model to start from has {given.max_text_tokens}; "
            f"encode with encode.max_text_tokens={given.max_text_tokens}"
        )
    ours_image, theirs_image = ((s.image_vocab, s.grid, s.code_levels) for s in (shape, given))
    if not text_only and ours_image != theirs_image:
        raise DataError(
            f"image vocabulary, grid and levels of the tokens {ours_image} differ from those of the model to start from "
            f"{theirs_image}; encode with the tokenizer that it was trained with"
        )
