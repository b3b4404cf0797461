"""What the drawing commands do: load a model from the store, let ``Studio`` work, write pictures and a record to a folder."""

import importlib.metadata
import io
import json
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dalle_model.decoding import DecodeSettings, Refused, decode
from dalle_model.errors import DataError, SourceError, UsageError
from dalle_model.explaining import explain, heat
from dalle_model.images import decode_rgb, square
from dalle_model.records import normalise_caption
from dalle_model.sheets import contact_sheet
from dalle_model.studio import Studio, scorer_of
from flows.commands import artifact_of, preset_config
from flows.views import only_writer, prepare_folder, slug, write_whole
from tasks.devices import DevicePolicy, resolve
from tasks.export_model import text_to_image
from tasks.generate import prompt_policy
from tasks.provenance import encoded
from tasks.settings import Settings
from tasks.step import open_store

Result = tuple[dict[str, Any], list[str]]
UInt8 = NDArray[np.uint8]
# what a camera or a scanner gives; read as ingest reads it, large enough for the square that a model sees
_READ = DecodeSettings(image_px=4096, max_bytes=500_000_000, max_mpx=200, max_side_px=65_535, max_aspect=200)


@dataclass(frozen=True)
class Ask:
    """What all drawing commands share."""

    settings: Settings
    model: str
    out: Path
    n: int = 4
    seed: int = 0
    sets: tuple[str, ...] = ()


def studio_of(ask: Ask, prompt: str | None = None) -> tuple[Studio, str]:
    """The model of the store, ready; and its fingerprint. ``--set generate.sampler...`` changes the sampler.

    UsageError for a prompt that the policy of ``generate`` does not draw. Device, type and threads are those of a step,
    so that pictures are those of ``dalle generate``.
    """
    settings = ask.settings
    store = open_store(settings)
    found = artifact_of(settings, ask.model, "model")
    parts = text_to_image(store, store.resolve(found.fingerprint))
    config = preset_config("quickstart", list(ask.sets)).generate
    if prompt is not None and (refusal := prompt_policy(config, settings).judge(prompt)):
        raise UsageError(f"the prompt is not drawn: {refusal.reason}")
    sampler = config.sampler.over(parts.sampler)
    if config.weights:
        sampler = sampler.model_copy(update={"weights": config.weights})
    runtime = resolve(DevicePolicy(settings.device, settings.dtype, settings.num_threads, settings.memory_fraction))
    return Studio(parts, runtime, sampler, lambda text: print(text, file=sys.stderr)), found.fingerprint


def picture_at(path: Path) -> UInt8:
    """A picture file of any kind that ingest reads, upright, in sRGB and on white, uint8 [H, W, 3].

    SourceError when it is not there, DataError when it cannot be read.
    """
    if not path.is_file():
        raise SourceError(f"{path} is not a file; give a picture (PNG, JPEG, WebP, AVIF, GIF, TIFF or BMP)")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    read = decode(data, _READ)
    if isinstance(read, Refused):
        raise DataError(f"{path} cannot be read ({read.reason.replace('_', ' ')}): {read.detail}")
    return decode_rgb(read.image)


def mask_at(path: Path, px: int) -> NDArray[np.bool_]:
    """The square middle of a mask file, as pictures are cut, bool [px, px]: what is white or transparent.

    A place of which any part is marked is marked, however thin the line.
    """
    image = picture_at(path)
    marked = square(image, min(image.shape[:2])).mean(2) >= 128
    shares = Image.fromarray(marked.astype(np.float32)).resize((px, px), Image.Resampling.BOX)
    return np.asarray(shares) > 0


def _png(picture: UInt8) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def _written(
    ask: Ask, studio: Studio, stem: str, pictures: UInt8, labels: list[str], payload: dict[str, Any]
) -> Result:
    """Pictures that tell their origin, one sheet of all, and ``drawing.json`` with what is known about them."""
    about = {
        "model": payload["model"],
        "prompt_sha256": sha256(payload["prompt"].encode()).hexdigest(),
        "seed": ask.seed,
        "sampler": studio.sampler.model_dump_json(),
        "code_version": importlib.metadata.version("dalle-prefect"),
    }
    files = [encoded(picture, about | {"index": i}) for i, picture in enumerate(pictures)]
    all_of_them = contact_sheet([_png(p) for p in pictures], labels, px=128)
    with only_writer(ask.out):
        paths = [str(write_whole(ask.out / f"{stem}-{i}.png", data).absolute()) for i, data in enumerate(files)]
        sheet = write_whole(ask.out / "contact_sheet.png", all_of_them)
        payload |= {"pictures": paths, "contact_sheet": str(sheet.absolute()), "seed": ask.seed, "ai_generated": True}
        write_whole(ask.out / "drawing.json", json.dumps(payload, indent=1, sort_keys=True).encode())
    return payload, [*(f"{path}  {label}" for path, label in zip(paths, labels, strict=True)), f"sheet: {sheet}"]


def complete(ask: Ask, image: Path, prompt: str, keep: float, mask: Path | None) -> Result:
    """Finish a picture whose top is given."""
    prepare_folder(ask.out)
    shown, prompt = picture_at(image), normalise_caption(prompt)
    studio, fingerprint = studio_of(ask, prompt)
    drawn_anew = None if mask is None else mask_at(mask, studio.image_px)
    made = studio.complete(shown, prompt, keep, ask.n, ask.seed, drawn_anew)
    payload = {"model": fingerprint, "prompt": prompt, "image": str(image), "keep": keep}
    return _written(ask, studio, slug(prompt), made, [prompt] * len(made), payload)


def vary(ask: Ask, image: Path, prompt: str, strength: float) -> Result:
    """Variations of a picture."""
    prepare_folder(ask.out)
    shown, prompt = picture_at(image), normalise_caption(prompt)
    studio, fingerprint = studio_of(ask, prompt or None)
    made, words = studio.vary(shown, ask.n, strength, prompt, ask.seed)
    payload = {"model": fingerprint, "prompt": words, "image": str(image), "strength": strength}
    return _written(ask, studio, slug(image.stem), made, [words] * len(made), payload)


def caption(ask: Ask, images: list[Path]) -> Result:
    """The model's words for picture files."""
    pictures = [picture_at(path) for path in images]
    studio, fingerprint = studio_of(ask)
    words = studio.caption(np.stack([square(p, studio.image_px) for p in pictures]))
    rows = [{"image": str(path), "caption": text} for path, text in zip(images, words, strict=True)]
    return {"model": fingerprint, "captions": rows}, [f"{row['image']}: {row['caption']}" for row in rows]


def continue_text(ask: Ask, text: str, language_model: str, expand: bool) -> Result:
    """Texts that go on from a beginning, by the model itself or by a causal language model."""
    if not language_model:
        studio, fingerprint = studio_of(ask)
        texts = studio.parts.continue_text([text], ask.n, ask.seed, runtime=studio.runtime)[0]
        return {"model": fingerprint, "texts": texts}, texts
    from dalle_model.language_models import LanguageModel

    other = LanguageModel.from_pretrained(language_model)
    texts = (other.expand if expand else other.continue_text)([text], ask.n, ask.seed)[0]
    return {"model": language_model, "texts": texts}, texts


def best_of(ask: Ask, prompt: str, candidates: int, clip: str) -> Result:
    """The best n of many pictures of a prompt, by the model's own p(prompt | picture) or by CLIP."""
    if ask.n > candidates:
        raise UsageError(
            f"--n {ask.n} of --best-of {candidates} pictures cannot be kept; draw more, or keep fewer with --n"
        )
    prepare_folder(ask.out)
    prompt = normalise_caption(prompt)
    studio, fingerprint = studio_of(ask, prompt)
    made, scores, indices = studio.best_of(prompt, candidates, ask.n, ask.seed, scorer_of(studio, clip))
    labels = [f"{s:.3f}" for s in scores]
    payload = {
        "model": fingerprint, "prompt": prompt, "candidates": candidates, "ranked_by": clip or "p(prompt | picture)",
        "scores": [float(s) for s in scores], "indices": [int(i) for i in indices],
    }  # fmt: skip
    return _written(ask, studio, slug(prompt), made, labels, payload)


def loop(ask: Ask, prompt: str, keep: int, rounds: int, threshold: float) -> Result:
    """Prompt, pictures, the model's own words, consistency: keep, resample or flag."""
    prepare_folder(ask.out)
    prompt = normalise_caption(prompt)
    studio, fingerprint = studio_of(ask, prompt)
    found = studio.loop(prompt, ask.n, keep, rounds, threshold, ask.seed)
    rows = [
        {"index": c.index, "words": c.words, "score": c.score, "agreement": c.agreement, "verdict": c.verdict}
        for c in found
    ]
    labels = [f"{c.verdict} {c.score:.2f}: {c.words}" for c in found]
    payload = {"model": fingerprint, "prompt": prompt, "threshold": threshold, "candidates": rows}
    return _written(ask, studio, slug(prompt), np.stack([c.picture for c in found]), labels, payload)


def explained(ask: Ask, prompt: str, px: int = 192) -> Result:
    """Pictures of a prompt, each with a sheet: where each word was looked at, and which tokens surprised the model."""
    prompt = normalise_caption(prompt)
    if not prompt:
        raise UsageError("the prompt is empty; there is no word to explain")
    prepare_folder(ask.out)
    studio, fingerprint = studio_of(ask, prompt)
    tokens = studio.draw_tokens(prompt, ask.n, ask.seed)
    made = studio.pictures(tokens)
    sheets, surprises = [], []
    for i, (row, picture) in enumerate(zip(tokens, made, strict=True)):
        why = explain(studio.parts.model, studio.words, prompt, row, studio.runtime)
        large = np.asarray(Image.fromarray(picture).resize((px, px), Image.Resampling.NEAREST))
        tiles = [large, heat(picture, why.surprise, px), *(heat(picture, m, px) for m in why.attention)]
        labels = ["picture", f"surprise, mean {why.surprise.mean():.2f} nats", *why.words]
        sheet = contact_sheet([_png(t) for t in tiles], labels, columns=min(8, len(tiles)), px=px)
        sheets.append(str(write_whole(ask.out / f"{slug(prompt)}-{i}.explained.png", sheet).absolute()))
        surprises.append(why.surprise.round(4).tolist())
    payload = {"model": fingerprint, "prompt": prompt, "explained": sheets, "surprise_nats": surprises}
    result, lines = _written(ask, studio, slug(prompt), made, [prompt] * len(made), payload)
    return result, [*lines, *(f"explained: {path}" for path in sheets)]
