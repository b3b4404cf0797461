"""Rows and report data for tests of the pages, drawn with Pillow."""

import hashlib
import io
import json
import math
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageDraw

from tasks.curves import Curve, Series
from tasks.pages import (
    Ancestor,
    Compared,
    ComparedFigure,
    Funnel,
    Headline,
    Metric,
    Neighbour,
    Picture,
    ReportData,
    Sample,
    Sheet,
)

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "' onmouseover='window.hacked = 1' {{ 7 * 7 }} {% raw %}",
    "<!--<script>window.hacked = 1",
    "</bdi></h2><iframe src=https://example.org></iframe>",
    "&lt;b&gt; &amp; <b>bold</b>",
    "invoice \u202egnp.exe\u202c of today",
    "nul \x00 bell \x07 line\u2028separator",
    "a line\nand | another `code` ![x](https://example.org/x.png) [l](javascript:alert(1))",
    "long word " + "x" * 10_000,
)
COLOURS = ("red", "blue", "green", "orange", "purple")
SHAPES = ("circle", "square", "ring")


def picture(colour: str, shape: str, *, px: int = 32, shift: int = 0) -> bytes:
    """A PNG of one shape on white."""
    image = Image.new("RGB", (px, px), "white")
    box = (px // 8 + shift, px // 8, px - px // 8 - 1, px - px // 8 - 1)
    draw = ImageDraw.Draw(image)
    if shape == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.ellipse(box, fill=colour if shape == "circle" else None, outline=colour, width=px // 8)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def row(prompt: str, index: int = 0, *, image: bytes = b"", tags: str = "", reason: str = "") -> dict[str, Any]:
    """A row with the columns of ``records.GENERATION``; refused when there is a reason."""
    return {
        "prompt": prompt,
        "prompt_sha256": hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest(),
        "index": index,
        "seed": 9_007_199_254_740_993 + index,  # above 2**53: must not pass through a JavaScript number
        "status": "refused" if reason else "drawn",
        "reason": reason,
        "tags": tags,
        "image": image,
        "image_tokens": [],
        "model": "ab" * 32,
        "sampler": json.dumps({"temperature": 1.0, "top_k": 64}),
        "code_version": "0.1.0",
        "negative": "",
    }


def rows(*, per_prompt: int = 2) -> Iterator[dict[str, Any]]:
    """Prompts of all colours and shapes, one refusal, and every hostile prompt."""
    for colour in COLOURS:
        for shape in SHAPES:
            for index in range(per_prompt):
                image = picture(colour, shape, shift=index)
                yield row(
                    f"a {colour} {shape}",
                    index,
                    image=image,
                    tags=f"{shape}, {'warm' if colour in ('red', 'orange') else 'cold'}",
                )
    yield row("a picture of something forbidden", reason="blocked_word", tags="forbidden")
    for prompt in HOSTILE:
        yield row(prompt, image=picture("black", "ring"), tags=json.dumps(["hostile", "<i>tag</i>"]))


def report_data(caption: str = "a red circle") -> ReportData:
    """A report with every section; ``caption`` is the text that came from outside."""
    red, blue = picture("red", "circle"), picture("blue", "circle")
    sample = Sample(
        caption, (Picture("original", red), Picture("drawn", blue)), recognised=True, note=f"note {caption}"
    )
    sheet = Sheet("Captions it was trained on", "Left the original, right the drawn picture.", (sample,) * 30)
    loss = tuple((float(step), 8 * math.exp(-step / 300) + 1) for step in range(0, 1001, 20))
    return ReportData(
        title="Evaluation",
        summary="It draws what it has seen.",
        facts={"Model": "abcdef"},
        headlines=(Headline("Recognisability", 0.74, "How often.", "good", "0.5 is the goal.", 0.74, 0.5),),
        sheets=(sheet,),
        heldout=Sheet("Combinations it has never seen", "", (sample,)),
        worst=Sheet("Where it fails", "", (Sample(caption, (Picture("drawn", blue),), recognised=False),)),
        compared=Compared(
            "better in recognisability",
            (ComparedFigure("recognisability", 0.7, 0.74, 0.04, 0.01, 0.07, 100, 9, 1, 0.021, "better", True),),
        ),
        neighbours=(Neighbour(caption, red, blue, caption, 0.25, copied=False),),
        curves=(
            Curve("Loss", (Series("image train", loss), Series("image valid", loss)), (("ln 4096", 8.3178),), "nats"),
        ),
        funnels=(Funnel("Curation", (("pairs", 100), ("duplicates", 90)), {"caption_too_short": 3, "duplicate": 7}),),
        metrics=(
            Metric("recognisability", 0.74, better="higher", low=0.65, high=0.82, previous=0.7, meaning="How often."),
            Metric("distance", None, better="lower"),
        ),
        lineage=(Ancestor("ingest", "pairs", "cd" * 32, "file:///x", {"source": caption}),),
        notes=("One seed only.",),
    )
