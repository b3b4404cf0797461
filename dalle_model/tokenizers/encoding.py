"""A tokenizer made ready to encode many pictures: weights laid out and rounded once, not at every batch."""

import copy

import torch
from torch import nn

from dalle_model.runtime import Runtime
from dalle_model.tokenizers.base import ImageTokenizer
from dalle_model.tokenizers.dvae import DvaeTokenizer


def prepared(tokenizer: ImageTokenizer, runtime: Runtime) -> ImageTokenizer:
    """A copy for ``encode`` alone, on the runtime's device: use it under ``runtime.autocast()``.

    Convolutions are kept channels-last, in the runtime's type; the layer that makes a dVAE's logits stays float32
    (paper, appendix A.1). Same ids as the tokenizer itself but for ties between rounding errors.
    """
    decoder = tokenizer._modules.pop("decoder")
    try:
        ready = copy.deepcopy(tokenizer)
    finally:
        tokenizer._modules["decoder"] = decoder
    ready = ready.to(runtime.device).eval().requires_grad_(False)
    head = ready.encoder.output if isinstance(ready, DvaeTokenizer) else None
    for name, module in ready.named_modules():
        if isinstance(module, nn.ReLU) and not name.endswith("relu_1"):  # the first reads what the identity path needs
            module.inplace = True
        if isinstance(module, nn.Conv2d) and module is not head:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if runtime.dtype != torch.float32:
                module.to(runtime.dtype)
    if isinstance(ready, DvaeTokenizer) and runtime.dtype != torch.float32:
        ready.rounded_head = ready.encoder.output.weight.flatten(1).to(runtime.dtype)
    return ready
