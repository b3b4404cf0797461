"""The card of a saved model: what it is, what it was made from, how good it is, and what it is for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dalle_model.dalle import Dalle

_CAN = {"text_to_image": "draw pictures", "image_to_text": "caption pictures", "text": "continue text"}


@dataclass(frozen=True)
class CardFacts:
    """What only the maker of a model knows. data, metrics: rows of tables. config: every setting, as JSON."""

    name: str = "A text-to-image model"
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    intended_use: str = (
        "Drawing pictures of the kind it was trained on, for research, teaching and work with one's own collection."
    )
    limits: str = (
        "It knows the words and things of its training captions and little else; other prompts give something near or "
        "nothing sensible. Its pictures are no evidence of anything. It has the gaps and biases of its data. No filter "
        "looks at prompts or pictures: who offers it to others adds one."
    )


def render_card(model: Dalle, sampler: Mapping[str, Any], facts: CardFacts) -> str:
    """Markdown with the YAML header that the Hugging Face hub reads."""
    from huggingface_hub import ModelCardData

    task = "text-to-image" if not model.directions or "text_to_image" in model.directions else "text-generation"
    header = ModelCardData(library_name="dalle-prefect", pipeline_tag=task, tags=["dalle", "autoregressive"])
    config, shape = model.config, model.shape
    can = ", ".join(_CAN[d] for d in model.directions) or "draw pictures"
    about = {
        "Can": can,
        "Parameters": f"{model.num_parameters:,}",
        "Transformer": f"{config.mode}, {config.depth} layers, width {config.dim}, {config.heads} heads",
        "Text": f"{shape.max_text_tokens} tokens at most, vocabulary {shape.text_vocab:,}, lower-cased",
        "Picture": f"{shape.grid} x {shape.grid} tokens, vocabulary {shape.image_vocab:,}",
        "Default sampler": ", ".join(f"{name} {value:g}" for name, value in sampler.items() if _is_number(value)),
    }
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {facts.name}",
        "## Use",
        '```python\nfrom dalle_model.text_to_image import TextToImage\n\nmodel = TextToImage.from_pretrained("FOLDER")\n'
        'pictures = model.draw(["a prompt"], n=4)  # uint8 [1, 4, H, W, 3]\n```',
        "## The model",
        _table("Property", "Value", about),
        "## Data",
        _table("What", "Value", facts.data) if facts.data else "Not recorded.",
        "## Metrics",
        _table("Figure", "Value", facts.metrics) if facts.metrics else "Not measured.",
        "## Intended use",
        facts.intended_use,
        "## Limits",
        facts.limits,
    ]
    if facts.config:
        text = json.dumps(facts.config, indent=1, sort_keys=True, ensure_ascii=False)
        parts += ["## Settings", f"```json\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _table(left: str, right: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())])


def _cell(value: Any) -> str:
    """One line that cannot end its cell: captions and sources come from strangers."""
    text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if _is_number(value) else str(value)
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
