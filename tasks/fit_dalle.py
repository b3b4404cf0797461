"""Stage fit: train the transformer on token rows."""

import json
import math
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from dalle_model.captions import CaptionTokenizer
from dalle_model.config import FitConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle, dalle_from_bytes, dalle_to_bytes
from dalle_model.errors import DataError
from dalle_model.images import to_uint8
from dalle_model.objectives import BpeDropout, validation_losses
from dalle_model.runtime import Runtime
from dalle_model.sampling import check_sampler
from dalle_model.sheets import contact_sheet
from dalle_model.text_objective import text_loss, transformer_objective
from dalle_model.token_batches import TokenRows, pad_text
from dalle_model.warm_start import start_from
from tasks.artifacts import Manifest, ObjectRef
from tasks.drawing import Painter
from tasks.encode_images import load_tokenizer
from tasks.job import Job, Outcome, load_ancestor
from tasks.live import Draw
from tasks.pictures import spread
from tasks.training import curve_object, train, training_runtime

_DRAWN = 8  # captions drawn at each look
_INIT = 2  # stream of the initial weights under the training seed
_ROLES = {"weights": "tokenizer.weights", "config": "tokenizer.config"}


def read_tokens(job: Job, tokens: Manifest, split: str) -> tuple[TokenRows, list[str], list[str], DalleShape]:
    """Token rows of one split, once, as arrays; their ids and captions; and the shape their schema declares.

    Raises DataError when the rows name another tokenizer than the artifact was made with.
    """
    expected = next(i.fingerprint for i in tokens.inputs if i.name == "tokenizer")
    text: list[list[int]] = []
    image, weights, ids, captions = [], [], [], []
    shape: DalleShape | None = None
    for obj in tokens.objects_of("tokens"):
        table = pq.read_table(job.fetch(obj))
        about = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
        if about.get("tokenizer") != expected:
            raise DataError(
                f"token shard {obj.key} is of tokenizer {about.get('tokenizer', 'none')[:12]}, the artifact of {expected[:12]}; encode again"
            )
        shape = DalleShape(
            text_vocab=int(about["text_vocab_size"]),
            max_text_tokens=int(about["max_text_tokens"]),
            image_vocab=int(about["image_vocab_size"]),
            grid=int(about["grid"]),
            code_levels=tuple(json.loads(about.get("code_levels", "[]"))),
        )
        table = table.filter(pa.compute.equal(table["split"], split))
        text += table["text_tokens"].to_pylist()
        flat = table["image_tokens"].combine_chunks().flatten().to_numpy()
        image.append(flat.reshape(-1, shape.num_image_tokens))
        weights.append(table["weight"].to_numpy())
        ids += table["id"].to_pylist()
        captions += table["caption"].to_pylist()
    if shape is None:
        raise DataError(f"tokens artifact {tokens.fingerprint[:12]} has no shard; encode again")
    rows = TokenRows(
        pad_text(text, shape.max_text_tokens), np.concatenate(image), np.concatenate(weights).astype(np.float32)
    )
    return rows, ids, captions, shape


def work(job: Job) -> Outcome:
    """Train, then measure the losses on training and held-out rows."""
    config: FitConfig = job.config
    tokens = job.inputs["tokens"]
    rows, _, captions, shape = read_tokens(job, tokens, "train")
    if not len(rows.image):
        raise DataError(
            "the split `train` of the tokens is empty; lower valid_share, test_share or the holdout and curate again"
        )
    check_sampler(config.sampler, shape)  # now, and not after hours, when the first picture is drawn
    with training_runtime(job, config.train.optim.seed) as runtime:
        model = build_dalle(config.model, shape, runtime.generator(_INIT))
        model.directions = config.train.directions
        words = CaptionTokenizer.from_json(job.read(tokens.object_of("bpe")))
        if "model" in job.inputs:
            _start_from(job, model, words, tokens)
        dropout = BpeDropout(words, captions, config.train.bpe_dropout, runtime)
        objective = transformer_objective(model, rows, config.train, runtime, dropout)
        draw = _samples(job, words, captions, config, runtime) if config.train.objective != "text" else None
        result, seen = train(
            job, objective, config.train.optim, runtime, data=tokens.fingerprint, title="Drawn from captions", draw=draw
        )
        if runtime.rank != 0:
            return Outcome((), 0, {})
    weights, described = dalle_to_bytes(model)
    objects = (
        job.put(weights, ext="safetensors", role="weights"),
        job.put(described, ext="json", role="config"),
        job.put(
            json.dumps(config.sampler.model_dump(mode="json"), sort_keys=True).encode(), ext="json", role="sampler"
        ),
        curve_object(job, result.curve),
        *seen,
        _same(tokens, "bpe", "bpe"),
        *(_same(load_ancestor(job.store, tokens, "tokenizer"), role, name) for role, name in _ROLES.items()),
    )
    stats: dict[str, Any] = {
        "parameters": model.num_parameters,
        "steps": result.steps,
        "trained_on": len(rows.image),
        "final_loss": result.curve[-1]["loss"],
    }
    vocabulary = shape.text_vocab if config.train.objective == "text" else shape.image_vocab
    stats["references"] = {"nothing learnt (ln K)": math.log(vocabulary)}
    stats |= _losses(job, model, tokens, runtime)
    facts = {
        "rows_per_s": result.rows_per_s,
        "train_seconds": result.seconds,
        "micro_batch_size": result.micro_batch_size,
    }
    return Outcome(objects, len(rows.image), stats, facts)


def _samples(job: Job, words: CaptionTokenizer, captions: list[str], config: FitConfig, runtime: Runtime) -> Draw:
    """How to draw the same few captions, spread over the training set, at any moment of the training."""
    tokenizer = load_tokenizer(job, load_ancestor(job.store, job.inputs["tokens"], "tokenizer"))
    prompts = [captions[i] for i in spread(len(captions), _DRAWN)]

    def draw(network: nn.Module) -> bytes:
        sampler, network = config.sampler, cast(Dalle, network)
        tokenizer.to(runtime.device)
        painter = Painter(network, tokenizer, words, sampler, runtime, "live", "live", say=job.log)
        requests = [painter.request(prompt, seed=0, index=0) for prompt in prompts]
        pictures = to_uint8(painter.pictures(painter.tokens(requests, len(requests))))
        return contact_sheet(list(pictures), prompts, columns=4, px=128)

    return draw


def _start_from(job: Job, model: Dalle, words: CaptionTokenizer, tokens: Manifest) -> None:
    """Replace the fresh weights by those of the given model. DataError when its image codes mean something else."""
    given = job.inputs["model"]
    source = dalle_from_bytes(*(job.read(given.object_of(role)) for role in ("weights", "config")))
    theirs = given.object_of("tokenizer.weights").sha256
    if (
        source.directions != ("text",)
        and theirs != load_ancestor(job.store, tokens, "tokenizer").object_of("weights").sha256
    ):
        tokenizer = load_ancestor(job.store, load_ancestor(job.store, given, "tokens"), "tokenizer").fingerprint
        raise DataError(
            f"the tokens were made by another image tokenizer than model {given.fingerprint[:12]} was trained with; "
            f"encode with its own: `dalle encode CURATED --tokenizer {tokenizer[:12]}`"
        )
    start = start_from(model, source, words, CaptionTokenizer.from_json(job.read(given.object_of("bpe"))))
    job.log(
        f"starts from model {given.fingerprint[:12]}: {start.known_tokens} of its text tokens are known, "
        f"{start.spelled_tokens} are spelled by them; fresh: {', '.join(start.fresh) or 'nothing'}"
    )


def _same(manifest: Manifest, role: str, name: str) -> ObjectRef:
    """An object of an input under another role: content-addressed, it costs no space, and a model is complete."""
    return manifest.object_of(role).model_copy(update={"role": name})


@torch.inference_mode()
def _losses(job: Job, model: Dalle, tokens: Manifest, runtime: Runtime) -> dict[str, float]:
    """Nats per token of each split, text and image."""
    model = model.to(runtime.device).eval()
    out: dict[str, float] = {}
    for split in ("train", "valid", "heldout"):
        rows, _, _, _ = read_tokens(job, tokens, split)
        if len(rows.image) and model.directions == ("text",):
            out[f"loss_text_{split}"] = text_loss(model, rows, runtime, limit=512)
        elif len(rows.image):
            text, image = validation_losses(model, rows, runtime, limit=512)
            out |= {f"loss_text_{split}": text, f"loss_image_{split}": image}
    return out
