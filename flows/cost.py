"""``dalle cost``: what a preset needs, in words."""

import dataclasses
from typing import Any

from dalle_model.config import PipelineConfig
from dalle_model.cost import Cost, cost_of

_PEAKS = {"A100": 312e12, "H100": 989e12}  # dense bfloat16 FLOP/s by their data sheets
_MEMORIES_GB = (8, 16, 24, 40, 80, 141, 192)
_MARGIN = 0.9  # the share of a GPU's memory that a step takes (DALLE_MEMORY_FRACTION)


def cost(name: str, config: PipelineConfig, gpus: int) -> tuple[dict[str, Any], list[str]]:
    """Payload and lines for ``gpus`` devices."""
    found = cost_of(config.fit, config.tokenizer, config.encode, gpus)
    hours = {gpu: found.gpu_hours(peak) for gpu, peak in _PEAKS.items()}
    payload = dataclasses.asdict(found) | {
        "training_bytes_per_gpu": found.training_bytes_per_gpu,
        "gpu_hours_at_40_percent": hours,
    }
    return payload, _lines(name, config, found, hours)


def _lines(name: str, config: PipelineConfig, c: Cost, hours: dict[str, float]) -> list[str]:
    optim, shape = config.fit.train.optim, config.encode.max_text_tokens
    how = f", {optim.sharding}" if c.gpus > 1 else ""
    time = "; ".join(f"{h:,.1f} GPU hours of {gpu} = {h / c.gpus:,.1f} h" for gpu, h in hours.items())
    return [
        f"{name} on {c.gpus} GPU{'s' if c.gpus > 1 else ''}{how}",
        f"parameters       {c.parameters:,} in the transformer, {c.tokenizer_parameters:,} in the image tokenizer",
        f"sequence         {c.sequence:,} tokens: {shape:,} text, {c.sequence - shape:,} image",
        f"training memory  {_gb(c.training_bytes_per_gpu)} per GPU: {_gb(c.state_bytes)} weights, gradients, optimiser and "
        f"average, about {_gb(c.activation_bytes)} activations of {c.rows_per_pass} rows{_smallest(c.training_bytes_per_gpu)}",
        f"drawing memory   {_gb(c.drawing_bytes)} for one picture{_smallest(c.drawing_bytes)}",
        f"FLOPs            {c.draw_flops_per_image:.3g} per picture drawn, {c.train_flops_per_row:.3g} per row trained, "
        f"{c.train_flops:.3g} in {optim.steps:,} updates of {optim.batch_size:,} rows",
        f"training time    {time}, at 40 % of their peak (arithmetic, not a measurement)",
    ]


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count < 1e10 else f"{count / 1e9:.0f} GB"


def _smallest(count: int) -> str:
    fits = [size for size in _MEMORIES_GB if count <= size * 1e9 * _MARGIN]
    return (
        f" (a GPU of {fits[0]} GB)"
        if fits
        else " (more than any one GPU has: more GPUs, fsdp2, a smaller micro_batch_size)"
    )
