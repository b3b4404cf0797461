"""The paper's one vocabulary: text, one pad token for each text position, then image codes, in one row of ids.

Our transformer keeps a table and a head per modality; this is the same model seen as the paper writes it (section 2.2):
ids 0..V-1 are text (0 is never used there: padding has ids of its own), V..V+L-1 the pad of each position, and from V+L on
image codes. For other programs that want one stream of tokens, and for the test that both views agree.
"""

import torch
from torch import Tensor

from dalle_model.dalle import PAD, Dalle, DalleShape
from dalle_model.errors import DataError


def joint_size(shape: DalleShape) -> int:
    """Entries of the joint vocabulary (the paper: 16,384 + 256 + 8,192)."""
    return shape.text_vocab + shape.max_text_tokens + shape.image_vocab


def to_joint(text: Tensor, image: Tensor, shape: DalleShape) -> Tensor:
    """Text ids [B, L] (0 = padding) and image ids [B, n] -> joint ids int64 [B, L + n]."""
    pads = shape.text_vocab + torch.arange(text.shape[1], device=text.device)
    return torch.cat([torch.where(text == PAD, pads, text), image + shape.text_vocab + shape.max_text_tokens], dim=1)


def from_joint(joint: Tensor, shape: DalleShape) -> tuple[Tensor, Tensor]:
    """The inverse of ``to_joint``. DataError when an id stands where its kind cannot be."""
    length, first = shape.max_text_tokens, shape.text_vocab + shape.max_text_tokens
    text, image = joint[:, :length], joint[:, length:] - first
    places = shape.text_vocab + torch.arange(length, device=joint.device)
    is_text, is_pad = (text > PAD) & (text < shape.text_vocab), text == places
    if not bool((is_text | is_pad).all()) or not bool(((image >= 0) & (image < shape.image_vocab)).all()):
        raise DataError(
            f"joint ids do not read as {length} text positions and then image codes of a vocabulary of {joint_size(shape)}"
        )
    return torch.where(is_pad, PAD, text), image


def joint_embedding(model: Dalle) -> Tensor:
    """The input table [joint_size, dim] that gives, by ``to_joint`` ids, what the model's own tables give."""
    image = model.image_embed.weight
    if model.shape.code_levels:
        image = image + model.level_map @ model.level_embed
    return torch.cat([model.text_embed.weight, model.pad_embed, image])


def joint_logits(model: Dalle, hidden: Tensor) -> Tensor:
    """Hidden states [B, L + n, dim] -> logits [B, L + n, joint_size], minus infinity for the other modality's entries.

    A text position's end or padding is the pad of its place, as the paper has it; our text head calls it 0.
    """
    shape, length = model.shape, model.shape.max_text_tokens
    out = hidden.new_full((*hidden.shape[:2], joint_size(shape)), -torch.inf, dtype=torch.float32)
    text = model.text_head(hidden[:, :length]).float()
    out[:, :length, 1 : shape.text_vocab] = text[..., 1:]
    places = torch.arange(length, device=hidden.device)
    out[:, places, shape.text_vocab + places] = text[..., PAD]
    out[:, length:, shape.text_vocab + length :] = (hidden[:, length:] @ model.image_vectors().T).float()
    return out
