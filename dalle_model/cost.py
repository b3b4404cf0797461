"""What a configuration costs before it is paid: parameters, memory of one GPU, FLOPs, from shapes alone.

The networks are built on torch's meta device: no memory is touched, so a laptop can price a 12-billion-parameter model.
Memory is what the training loop and the sampler hold; activations are an estimate (Korthikanti et al. 2022, equation 2,
without the term that fused attention does not store). FLOPs count a multiplication and an addition as two.
"""

from dataclasses import dataclass

import torch

from dalle_model.attention import layer_kinds, sparse_mask
from dalle_model.config import EncodeConfig, FitConfig, TokenizerConfig
from dalle_model.dalle import Dalle, DalleShape
from dalle_model.tokenizers.registry import build_tokenizer
from dalle_model.training import training_bytes

_HALF = 2  # bytes of bfloat16
_ACTIVATION_BYTES = 34  # per token, layer and channel of width, in 16-bit training with fused attention


@dataclass(frozen=True)
class Cost:
    """Counts, bytes and FLOPs of one configuration on a number of GPUs.

    state_bytes: weights, gradients, optimiser and average on one GPU. activation_bytes: of one forward and backward pass
    of ``rows_per_pass`` rows there. drawing_bytes: weights in bfloat16 and the keys and values of one picture.
    """

    parameters: int
    tokenizer_parameters: int
    sequence: int
    gpus: int
    rows_per_pass: int
    state_bytes: int
    activation_bytes: int
    train_flops_per_row: float
    train_flops: float
    drawing_bytes: int
    draw_flops_per_image: float

    @property
    def training_bytes_per_gpu(self) -> int:
        """State and activations together."""
        return self.state_bytes + self.activation_bytes

    def gpu_hours(self, peak_flops: float, utilisation: float = 0.4) -> float:
        """Hours of all GPUs together to train, at a share of the peak: an assumption, not a promise."""
        return self.train_flops / (peak_flops * utilisation) / 3600


def shape_of(tokenizer: TokenizerConfig, encode: EncodeConfig) -> DalleShape:
    """The token shape that a configuration leads to, with the whole caption vocabulary."""
    return DalleShape(
        text_vocab=encode.text_vocab_size,
        max_text_tokens=encode.max_text_tokens,
        image_vocab=tokenizer.vocab_size,
        grid=tokenizer.grid,
        code_levels=tokenizer.fsq_levels if tokenizer.kind == "fsq" else (),
    )


def build_on_meta(fit: FitConfig, shape: DalleShape) -> Dalle:
    """The transformer without values."""
    with torch.device("meta"):
        return Dalle(fit.model, shape)


def cost_of(fit: FitConfig, tokenizer: TokenizerConfig, encode: EncodeConfig, gpus: int = 1) -> Cost:
    """Price a configuration trained on ``gpus`` devices, with its own sharding, micro-batch and sampler."""
    shape = shape_of(tokenizer, encode)
    model = build_on_meta(fit, shape)
    with torch.device("meta"):
        image_parameters = sum(p.numel() for p in build_tokenizer(tokenizer).parameters())
    optim, config = fit.train.optim, fit.model
    length = shape.max_text_tokens + shape.num_image_tokens
    rows = max(1, optim.batch_size // gpus)
    rows_per_pass = min(optim.micro_batch_size or rows, rows)
    per_layer = rows_per_pass * length * config.dim
    activations = _ACTIVATION_BYTES * per_layer * config.depth
    if optim.activation_checkpointing:
        activations = _HALF * per_layer * config.depth + _ACTIVATION_BYTES * per_layer
    forward = forward_flops(model)
    train_row = forward * (4 if optim.activation_checkpointing else 3)
    guided = 2 if fit.sampler.guidance != 1.0 else 1
    cache = 2 * config.depth * config.dim * length * _HALF * guided
    return Cost(
        parameters=model.num_parameters,
        tokenizer_parameters=image_parameters,
        sequence=length,
        gpus=gpus,
        rows_per_pass=rows_per_pass,
        state_bytes=training_bytes(model, optim, world=gpus),
        activation_bytes=activations,
        train_flops_per_row=train_row,
        train_flops=train_row * optim.batch_size * optim.steps,
        drawing_bytes=_HALF * model.num_parameters + cache,
        # with a cache each position is computed once; text logits are never read
        draw_flops_per_image=guided * (forward - _head_flops(shape.max_text_tokens, model.text_head.weight.shape)),
    )


def forward_flops(model: Dalle) -> float:
    """FLOPs of one row's forward pass that the task needs: what a mask hides is not counted, nor the other head's logits."""
    shape, config = model.shape, model.config
    length = shape.max_text_tokens + shape.num_image_tokens
    matrices = sum(p.numel() for n, p in model.blocks.named_parameters() if p.dim() == 2 and "embed" not in n)
    heads = _head_flops(shape.max_text_tokens, model.text_head.weight.shape)
    heads += _head_flops(shape.num_image_tokens, model.image_head.weight.shape)
    return 2 * matrices * length + heads + sum(4 * config.dim * pairs for pairs in visible_pairs(model))


def visible_pairs(model: Dalle) -> list[int]:
    """For each layer how many (query, key) pairs attention admits, keys at or before the query."""
    shape, depth = model.shape, model.config.depth
    length = shape.max_text_tokens + shape.num_image_tokens
    if model.config.mode == "modern":
        return [length * (length + 1) // 2] * depth
    kinds = layer_kinds(depth)
    prefix = shape.max_text_tokens + 1
    counts = {kind: int(sparse_mask(kind, prefix, shape.grid)[:-1, :-1].sum()) for kind in set(kinds)}
    return [counts[kind] for kind in kinds]


def _head_flops(rows: int, weight: torch.Size) -> float:
    return 2.0 * rows * weight[0] * weight[1]
