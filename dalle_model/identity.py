"""What makes a model the same one, wherever it lies and whatever it is called: its weights and its config."""

import hashlib

import torch

from dalle_model.config import canonical_json
from dalle_model.dalle import Dalle


def model_identity(model: Dalle) -> str:
    """SHA-256, in hex, of the transformer's tensors (name, type, shape, bytes) and of its config and shape.

    The noise of pictures is keyed by it, so that a model draws the same pictures from the store, from an exported folder
    and from memory. Knobs at their defaults do not count: one that a later version adds leaves old models as they were.
    """
    about = {"model": model.config.model_dump(mode="json", exclude_defaults=True)}
    about["shape"] = model.shape.model_dump(mode="json", exclude_defaults=True)
    digest = hashlib.sha256(canonical_json(about))
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]))
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
