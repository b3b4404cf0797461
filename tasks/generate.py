"""Stage generate: a list of prompts to pictures, a gallery, and a row of provenance for each."""

import importlib.metadata
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dalle_model.config import GenerateConfig, canonical_json
from dalle_model.errors import DataError
from dalle_model.images import to_uint8
from dalle_model.records import GENERATION
from dalle_model.sheets import contact_sheet
from tasks.artifacts import Part
from tasks.drawing import Painter, load_painter
from tasks.job import Job, Outcome
from tasks.pages import gallery_html
from tasks.prompts import Prompt, all_prompts
from tasks.settings import Settings

_ON_SHEET = 96
_IN_GALLERY = 4000  # pictures; the page is one file


@dataclass(frozen=True)
class Item:
    """One picture to make."""

    prompt: Prompt
    seed: int
    index: int


def identity(config: GenerateConfig, settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """The config without the place of the prompt file, and the digest of what the file holds."""
    _, digest = all_prompts(config, settings)
    return config.model_dump(mode="json", exclude={"prompts_uri"}), {"prompts": digest} if digest else {}


def work(job: Job) -> Outcome:
    """Draw shard after shard; a shard that has a receipt is not drawn again."""
    config: GenerateConfig = job.config
    prompts, digest = all_prompts(config, job.settings)
    if digest != job.spec.recorded_config["outside"].get("prompts", ""):
        raise DataError(f"the prompt file {config.prompts_uri} changed since this run began; start again")
    items = _items(prompts, config)
    painter = load_painter(job, job.inputs["model"], config.sampler, config.seed)
    done = job.parts()
    starts = range(0, len(items), config.rows_per_shard)
    for n, start in enumerate(starts):
        shard = items[start : start + config.rows_per_shard]
        if n not in done:
            done[n] = _draw_shard(job, painter, shard, start, len(items))
            job.commit_part(n, done[n])
        job.progress(start + len(shard), len(items), "pictures")
    objects = [o for n in range(len(starts)) for o in done[n].objects]
    rows = [row for o in objects for row in pq.read_table(job.fetch(o), columns=_SHOWN).to_pylist()][:_IN_GALLERY]
    gallery = gallery_html(rows, title="Generated pictures", facts=_facts(painter, config), tile_px=config.upscale_px)
    objects.append(job.put(gallery, ext="html", role="gallery"))
    objects.append(job.put(_sheet(rows, config), ext="png", role="sheet.samples"))
    drawn = sum(n_part.stats["drawn"] for n_part in done.values())
    stats = {
        "prompts": len(prompts),
        "drawn": drawn,
        "refused": len(items) - drawn,
        "cut": sum(p.stats["cut"] for p in done.values()),
    }
    return Outcome(tuple(objects), len(items), stats)


_SHOWN = [name for name in GENERATION.names if name != "image_tokens"]


def _items(prompts: Sequence[Prompt], config: GenerateConfig) -> list[Item]:
    return [
        Item(p, config.seed if p.seed is None else p.seed, i)
        for p in prompts
        for i in range(config.n if p.n is None else p.n)
    ]


def _draw_shard(job: Job, painter: Painter, items: Sequence[Item], before: int, total: int) -> Part:
    """Rows of one shard in order: drawn pictures, and refused prompts with their reason."""
    config: GenerateConfig = job.config
    good = [i for i, item in enumerate(items) if item.prompt.text]
    requests = [painter.request(items[i].prompt.text, items[i].seed, items[i].index) for i in good]
    tokens = painter.tokens(requests, config.batch_size, lambda done, _: job.progress(before + done, total, "pictures"))
    pictures = to_uint8(painter.pictures(tokens)) if good else np.empty((0, 8, 8, 3), np.uint8)
    cut = {i for i in good if len(painter.words.encode(items[i].prompt.text)) > painter.max_text_tokens}
    rows = []
    at = dict(zip(good, range(len(good)), strict=True))
    for i, item in enumerate(items):
        row = _row(painter, item)
        if i in at:
            row |= {"status": "drawn", "image_tokens": tokens[at[i]].tolist(), "image": _png(pictures[at[i]], row)}
            row["reason"] = f"cut to {painter.max_text_tokens} tokens" if i in cut else ""
        else:
            row |= {"status": "refused", "reason": "empty prompt", "image_tokens": [], "image": b""}
        rows.append(row)
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=GENERATION), out, compression="zstd")
    obj = job.put(out.getvalue(), ext="parquet", role="generations", rows=len(rows))
    return Part(objects=(obj,), stats={"drawn": len(good), "cut": len(cut)})


def _row(painter: Painter, item: Item) -> dict[str, Any]:
    return {
        "prompt": item.prompt.text,
        "prompt_sha256": sha256(item.prompt.text.encode()).hexdigest(),
        "index": item.index,
        "seed": item.seed,
        "tags": ",".join(item.prompt.tags),
        "model": painter.fingerprint,
        "sampler": canonical_json(painter.sampler.model_dump(mode="json")).decode(),
        "code_version": importlib.metadata.version("dalle-prefect"),
    }


def _png(image: np.ndarray, row: dict[str, Any]) -> bytes:  # type: ignore[type-arg]
    """A PNG that says what it is: AI-generated, by which model, from which prompt and seed."""
    info = PngInfo()
    info.add_itxt("Software", "dalle-prefect")
    info.add_itxt("Comment", "AI generated")
    about = {k: row[k] for k in ("model", "prompt_sha256", "seed", "index", "sampler", "code_version")}
    info.add_itxt("dalle-prefect", json.dumps(about, sort_keys=True))
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def _facts(painter: Painter, config: GenerateConfig) -> dict[str, str]:
    sampler = ", ".join(f"{k} {v}" for k, v in painter.sampler.model_dump().items())
    return {"model": painter.fingerprint[:12], "sampler": sampler, "seed": str(config.seed)}


def _sheet(rows: Sequence[dict[str, Any]], config: GenerateConfig) -> bytes:
    shown = rows[:_ON_SHEET]
    return contact_sheet(
        [r["image"] or None for r in shown], [r["prompt"] for r in shown], columns=12 if len(shown) > 24 else 8, px=96
    )
