"""Stage generate: a list of prompts to pictures, a gallery, and a row of provenance for each."""

import importlib.metadata
import io
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.config import GenerateConfig, canonical_json
from dalle_model.curation.word_lists import parse_list
from dalle_model.errors import DataError, UsageError
from dalle_model.images import to_uint8
from dalle_model.prompt_policy import POLICY_VERSION, PromptPolicy
from dalle_model.records import GENERATION
from dalle_model.sheets import contact_sheet
from dalle_model.sources.telling import Tell, silent
from tasks.artifacts import Manifest, ObjectRef, Part
from tasks.drawing import Painter, load_painter
from tasks.job import Job, Outcome, load_ancestor
from tasks.model_scores import nsfw_digest, open_nsfw
from tasks.pages import gallery_html
from tasks.pictures import curated_table, spread
from tasks.prompts import Prompt, all_prompts, read_uri
from tasks.provenance import encoded
from tasks.settings import Settings
from tasks.work_items import Item, Piece, items_of, pieces

if TYPE_CHECKING:
    from dalle_model.curation.scorers import Scorer

_ON_SHEET = 96
_IN_GALLERY = 4000  # pictures; the page is one file,
_GALLERY_BYTES = 100_000_000  # and a browser reads all of it


def identity(config: GenerateConfig, settings: Settings, tell: Tell = silent) -> tuple[dict[str, Any], dict[str, str]]:
    """The config without the places of the prompt file and of the word list, and the digests of what they hold."""
    _, digest = all_prompts(config, settings)
    recorded = config.model_dump(mode="json", exclude={"prompts_uri", "policy_file", "nsfw_model"})
    return recorded, ({"prompts": digest} if digest else {}) | _rules_outside(config, settings)


def _rules_outside(config: GenerateConfig, settings: Settings) -> dict[str, str]:
    """Digests of the word lists and of the classifier's weights, and how the lists are read."""
    lists = {f"policy.{name}": words.digest for name, words in prompt_policy(config, settings).lists}
    return (
        lists
        | {"policy": str(POLICY_VERSION)}
        | ({"nsfw": nsfw_digest(config.nsfw_model)} if config.nsfw_model else {})
    )


def prompt_policy(config: GenerateConfig, settings: Settings) -> PromptPolicy:
    """The rules of a config. Raises SourceError when its own list is not there, DataError when it is no list."""
    own = parse_list(read_uri(config.policy_file, settings), config.policy_file) if config.policy_file else None
    return PromptPolicy.standard(own, packaged=config.prompt_policy == "standard")


@dataclass(frozen=True)
class _Studio:
    """What draws, and what decides about prompts and pictures."""

    painter: Painter
    policy: PromptPolicy
    classifier: "Scorer | None"
    rules: dict[str, Any]  # as they are recorded


def _studio(job: Job) -> _Studio:
    config: GenerateConfig = job.config
    recorded = job.spec.recorded_config["outside"]
    if _rules_outside(config, job.settings).items() - recorded.items():
        raise DataError("the word list or the classifier of this batch changed since the run began; start again")
    policy = prompt_policy(config, job.settings)
    rules = policy.record() | ({"nsfw": recorded["nsfw"], "max_nsfw": config.max_nsfw} if config.nsfw_model else {})
    painter = load_painter(job, job.inputs["model"], config.sampler, config.seed, config.weights)
    classifier = open_nsfw(config.nsfw_model, job.runtime) if config.nsfw_model else None
    return _Studio(painter, policy, classifier, rules)


def work(job: Job) -> Outcome:
    """Draw shard after shard; a shard that has a receipt is not drawn again."""
    config: GenerateConfig = job.config
    prompts, digest = all_prompts(config, job.settings)
    if digest != job.spec.recorded_config["outside"].get("prompts", ""):
        raise DataError(f"the prompt file {config.prompts_uri} changed since this run began; start again")
    if config.own_captions:
        prompts += _own_captions(job, job.inputs["model"], config.own_captions)
    studio = _studio(job)
    painter = studio.painter
    about = {
        "sampler": painter.sampler.model_dump(mode="json"),
        "format": config.format,
        "policy": studio.rules,
    }
    cut = pieces(items_of(prompts, config), config.rows_per_shard, about, painter.fingerprint)
    parts = _drawn(job, studio, cut)
    objects = [o for piece in cut for o in parts[piece.key].objects]
    total, drawn, shortened = (sum(p.stats[name] for p in parts.values()) for name in ("pictures", "drawn", "cut"))
    rows = first_rows(_shown_rows(job, objects), _IN_GALLERY, _GALLERY_BYTES)
    facts = _facts(painter, config)
    if len(rows) < total:
        facts["shown"] = f"the first {len(rows):,} of {total:,}; all are in generations.parquet"
    gallery = gallery_html(rows, title="Generated pictures", facts=facts, tile_px=config.upscale_px)
    objects.append(job.put(gallery, ext="html", role="gallery"))
    objects.append(job.put(_sheet(rows), ext="png", role="sheet.samples"))
    stats = {
        "prompts": len(prompts),
        "drawn": drawn,
        "refused": total - drawn,
        "cut": shortened,
        "policy": studio.rules,
        "not_checked": [] if config.nsfw_model else ["nsfw"],  # not checked is not safe
    }
    return Outcome(tuple(objects), total, stats)


def _own_captions(job: Job, model: Manifest, count: int) -> list[Prompt]:
    """Captions that ``model`` was made from, tagged with their split: held-out ones, at most half, then training ones.

    Spread over the alphabet. Fewer than ``count`` where there are fewer. Raises DataError when the pairs are gone.
    """
    by_tokens = any(used.name == "tokens" for used in model.inputs)
    curated = load_ancestor(job.store, load_ancestor(job.store, model, "tokens") if by_tokens else model, "curated")
    found: list[Prompt] = []
    for split, wanted in (("heldout", count // 2), ("train", count)):
        captions = sorted(set(curated_table(job, curated, (split,))["caption"].to_pylist()) - {p.text for p in found})
        found += [Prompt(captions[i], tags=(split,)) for i in spread(len(captions), min(wanted, count - len(found)))]
    return found


def _drawn(job: Job, studio: _Studio, cut: Sequence[Piece]) -> dict[str, Part]:
    """The receipt of every piece; those that no run has drawn yet are drawn now."""
    if studio.painter.sampler.guidance == 1.0 and any(item.negative for piece in cut for item in piece.items):
        raise UsageError("a negative prompt works through guidance, which is 1 (off); set sampler.guidance, e.g. 2")
    found = {piece.key: part for piece in cut if (part := _receipt(job, piece)) is not None}
    total = sum(len(piece.items) for piece in cut)
    missing = [piece for piece in cut if piece.key not in found]
    # Two runs over the same prompts that both began at the first would draw everything twice, side by side. Each
    # begins somewhere and looks before it draws; where it began is not seen in what it makes.
    first = random.SystemRandom().randrange(len(missing)) if missing else 0
    done = total - sum(len(piece.items) for piece in missing)
    for piece in missing[first:] + missing[:first]:
        part = _receipt(job, piece)
        if part is None:
            part = _draw_piece(job, studio, piece.items, done, total)
            job.commit_part(0, part, piece.key)
        found[piece.key] = part
        done += len(piece.items)
        job.progress(done, total, "pictures")
    job.progress(total, total, "pictures")
    return found


def _receipt(job: Job, piece: Piece) -> Part | None:
    part = job.store.parts(piece.key).get(0)
    return None if part is None or job.store.missing(part.objects) else part


_SHOWN = [name for name in GENERATION.names if name != "image_tokens"]


def _shown_rows(job: Job, objects: Sequence[ObjectRef]) -> Iterator[dict[str, Any]]:
    for obj in objects:
        yield from pq.read_table(job.fetch(obj), columns=_SHOWN).to_pylist()


def first_rows(rows: Iterable[dict[str, Any]], most: int, most_bytes: int) -> list[dict[str, Any]]:
    """The first rows of a batch: at most so many, with pictures of at most so many bytes together; never none."""
    kept: list[dict[str, Any]] = []
    for row in islice(rows, most):
        most_bytes -= len(row["image"])
        if kept and most_bytes < 0:
            break
        kept.append(row)
    return kept


def _draw_piece(job: Job, studio: _Studio, items: Sequence[Item], before: int, total: int) -> Part:
    """Rows of one piece in order: drawn pictures, and with their reason refused prompts and withheld pictures."""
    config: GenerateConfig = job.config
    painter, policy = studio.painter, studio.policy
    guidance = painter.sampler.guidance
    refused = {
        # a model without prompts draws for the empty one: there is nothing to judge
        (prompt, away): policy.judge(prompt, away, guidance) if prompt or painter.reads_prompts else None
        for prompt, away in dict.fromkeys((item.prompt, item.negative) for item in items)
    }
    drawn = [item for item in items if refused[item.prompt, item.negative] is None]
    requests = [painter.request(item.prompt, item.seed, item.index, negative=item.negative) for item in drawn]
    tokens = painter.tokens(requests, config.batch_size, lambda done, _: job.progress(before + done, total, "pictures"))
    pictures = to_uint8(painter.pictures(tokens)) if drawn else np.empty((0, 8, 8, 3), np.uint8)
    made = iter(zip(tokens, pictures, strict=True))
    rows = []
    for item in items:
        row = _row(painter, item)
        if refusal := refused[item.prompt, item.negative]:
            rows.append(row | {"status": "refused", "reason": refusal.reason, "image_tokens": [], "image": b""})
            continue
        ids, picture = next(made)
        cut = len(painter.words.encode(item.prompt)) > painter.max_text_tokens
        row["reason"] = f"cut to {painter.max_text_tokens} tokens" if cut else ""
        image = encoded(picture, _origin(row), config.format)
        rows.append(
            row | {"status": "drawn", "image_tokens": ids.tolist() if painter.reads_prompts else [], "image": image}
        )
    if studio.classifier is not None:
        _withhold(rows, studio.classifier, config.max_nsfw)
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=GENERATION), out, compression="zstd")
    obj = job.put(out.getvalue(), ext="parquet", role="generations", rows=len(rows))
    shortened = sum(row["status"] == "drawn" and bool(row["reason"]) for row in rows)
    return Part(
        objects=(obj,),
        stats={"pictures": len(items), "drawn": sum(row["status"] == "drawn" for row in rows), "cut": shortened},
    )


def _withhold(rows: Sequence[dict[str, Any]], classifier: "Scorer", limit: float) -> None:
    """Take the picture from every row that the classifier scores above ``limit``; the row stays, with the score."""
    drawn = [row for row in rows if row["status"] == "drawn"]
    scores = classifier.score([row["image"] for row in drawn], [row["prompt"] for row in drawn]) if drawn else ()
    for row, score in zip(drawn, scores, strict=True):
        if score > limit:
            reason = f"picture not safe for work: {score:g} by the classifier, {limit:g} at most"
            row.update(status="refused", reason=reason, image_tokens=[], image=b"")


def _row(painter: Painter, item: Item) -> dict[str, Any]:
    return {
        "prompt": item.prompt,
        "prompt_sha256": sha256(item.prompt.encode()).hexdigest(),
        "index": item.index,
        "seed": item.seed,
        "negative": item.negative,
        "tags": ",".join(item.tags),
        "model": painter.fingerprint,
        "sampler": canonical_json(painter.sampler.model_dump(mode="json")).decode(),
        "code_version": importlib.metadata.version("dalle-prefect"),
    }


def _origin(row: dict[str, Any]) -> dict[str, Any]:
    about = {k: row[k] for k in ("model", "prompt_sha256", "seed", "index", "sampler", "code_version")}
    negative = {"negative_sha256": sha256(row["negative"].encode()).hexdigest()} if row["negative"] else {}
    return about | negative


def _facts(painter: Painter, config: GenerateConfig) -> dict[str, str]:
    sampler = ", ".join(f"{k} {v}" for k, v in painter.sampler.model_dump().items())
    return {"model": painter.fingerprint[:12], "sampler": sampler, "seed": str(config.seed)}


def _sheet(rows: Sequence[dict[str, Any]]) -> bytes:
    shown = rows[:_ON_SHEET]
    return contact_sheet(
        [r["image"] or None for r in shown], [r["prompt"] for r in shown], columns=12 if len(shown) > 24 else 8, px=96
    )
