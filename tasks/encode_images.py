"""Stage encode: curated pairs to token rows in Parquet, shard by shard."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.config import AugmentConfig, EncodeConfig
from dalle_model.errors import DataError
from dalle_model.images import decode_rgb, square, to_float
from dalle_model.metrics import code_usage, psnr
from dalle_model.pair_copies import all_words, augment_caption, augment_image
from dalle_model.records import token_row
from dalle_model.tokenizers.base import ImageTokenizer
from dalle_model.tokenizers.encoding import prepared
from dalle_model.tokenizers.registry import tokenizer_from_bytes
from tasks.artifacts import ArtifactRef, Manifest, Part
from tasks.fit_tokenizer import decode_ids, encode_ids
from tasks.job import Job, Outcome
from tasks.pictures import Squares, UInt8, curated_table, read_facts, read_pictures
from tasks.settings import Settings
from tasks.step import open_store

_ROUND_TRIP = 16  # pictures of a shard that are decoded again: they cost as much as the encoding of as many


def load_tokenizer(job: Job, manifest: Manifest, prefix: str = "") -> ImageTokenizer:
    """The image tokenizer in an artifact, in eval mode on the job's device."""
    weights, config = (job.read(manifest.object_of(prefix + role)) for role in ("weights", "config"))
    return tokenizer_from_bytes(weights, config).to(job.runtime.device)


def num_pieces(config: EncodeConfig, inputs: Mapping[str, ArtifactRef], settings: Settings) -> int:
    """Shards of token rows that the curated pairs come to."""
    curated = inputs["curated"]
    manifest = open_store(settings).find(curated.step, curated.fingerprint)
    rows = manifest.rows + config.augment.copies * manifest.stats["splits"]["train"] if manifest else 0
    return -(-int(rows) // config.rows_per_shard)


def work(job: Job) -> Outcome:
    """Train the BPE on training captions, then encode one shard of rows after the other."""
    config: EncodeConfig = job.config
    curated = job.inputs["curated"]
    table = _with_copies(job, curated_table(job, curated))
    captions = table.filter(pa.compute.equal(table["split"], "train"))["caption"].to_pylist()
    if not captions:
        raise DataError("the split `train` of the curated pairs is empty; lower valid_share, test_share or the holdout")
    bpe = train_bpe(captions, config.text_vocab_size)
    words = CaptionTokenizer.from_json(bpe)
    tokenizer = load_tokenizer(job, job.inputs["tokenizer"])
    done = job.parts()
    starts = range(0, table.num_rows, config.rows_per_shard)
    wanted = [n for n in range(len(starts)) if job.pieces is None or n in job.pieces]
    shards = {n: table.slice(starts[n], config.rows_per_shard) for n in wanted if n not in done}
    ready = prepared(tokenizer, job.runtime)
    for n, images in _read_ahead(job, shards, tokenizer.config.image_px):
        done[n] = _encode_shard(job, shards[n], images, words, tokenizer, ready)
        job.commit_part(n, done[n])
        job.progress(starts[n] + shards[n].num_rows, table.num_rows, "pictures encoded")
    job.progress(table.num_rows, table.num_rows, "pictures encoded")
    if job.pieces is not None:
        return Outcome((), 0, {})
    parts = [done[n] for n in range(len(starts))]
    objects = (*(o for part in parts for o in part.objects), job.put(bpe, ext="json", role="bpe"))
    histogram = np.sum([part.stats["codes"] for part in parts], axis=0)
    used = histogram[histogram > 0] / histogram.sum()
    stats = {
        "rows": table.num_rows,
        "augmented": table.num_rows - int(pa.compute.sum(pa.compute.equal(table["augmentation"], 0)).as_py()),
        "splits": {
            split: sum(part.stats["splits"].get(split, 0) for part in parts)
            for split in ("train", "valid", "test", "heldout")
        },
        "cut_captions": sum(part.stats["cut_captions"] for part in parts),
        "text_vocab_size": words.vocab_size,
        "code_perplexity": float(np.exp(-(used * np.log(used)).sum())),
        "dead_codes": int((histogram == 0).sum()),
        "round_trip_psnr": float(np.mean([part.stats["round_trip_psnr"] for part in parts])),
    }
    return Outcome(objects, table.num_rows, stats)


def _with_copies(job: Job, table: pa.Table) -> pa.Table:
    """Curated rows with a column ``augmentation``; each training row is followed by its augmented copies."""
    config: AugmentConfig = job.config.augment
    times = np.where(np.asarray(pa.compute.equal(table["split"], "train")), config.copies + 1, 1)
    origin = np.repeat(np.arange(table.num_rows), times)
    copy = np.arange(len(origin)) - np.repeat(np.cumsum(times) - times, times)
    if config.copies:
        facts = read_facts(job, job.inputs["curated"], table) if config.aliases or config.keywords else None
        ids, captions = table["id"].to_pylist(), table["caption"].to_pylist()
        worded = [
            augment_caption(captions[o], facts[o] if facts else {}, ids[o], k, config)
            for o, k in zip(origin.tolist(), copy.tolist(), strict=True)
        ]
        words = [all_words(caption, facts[n] if facts else {}) for n, caption in enumerate(captions)]
        about = pa.array(words, pa.string()).take(pa.array(origin))
        table = table.take(pa.array(origin))
        table = table.set_column(table.schema.get_field_index("caption"), "caption", pa.array(worded, pa.string()))
        table = table.append_column("about", about)
    return table.append_column("augmentation", pa.array(copy, pa.int32()))


def _squares_of(rows: pa.Table, px: int, config: AugmentConfig) -> Squares:
    """Squares of rows and of their augmented copies. What may change is read from the pair's own words."""
    ids, copies, words = (rows[name].to_pylist() for name in ("id", "augmentation", "about"))

    def squares(positions: npt.NDArray[np.int64], pictures: Sequence[bytes]) -> UInt8:
        made = [
            square(
                augment_image(decode_rgb(data), words[p], ids[p], copies[p], config) if copies[p] else decode_rgb(data),
                px,
            )
            for p, data in zip(positions.tolist(), pictures, strict=True)
        ]
        return np.stack(made)

    return squares


def _read_ahead(job: Job, shards: Mapping[int, pa.Table], px: int) -> Iterator[tuple[int, UInt8]]:
    """Pictures of each shard, uint8 [R, px, px, 3]; the next one is read and decoded while the caller encodes."""
    with ThreadPoolExecutor(1) as reader:
        waiting = {n: reader.submit(_read, job, shards[n], px) for n in list(shards)[:1]}
        for n, after in zip(shards, [*list(shards)[1:], None], strict=False):
            if after is not None:
                waiting[after] = reader.submit(_read, job, shards[after], px)
            yield n, waiting.pop(n).result()


def _read(job: Job, rows: pa.Table, px: int) -> UInt8:
    images = np.empty((rows.num_rows, px, px, 3), np.uint8)
    augment: AugmentConfig = job.config.augment
    changed = _squares_of(rows, px, augment) if augment.copies else None
    for positions, squares in read_pictures(job, job.inputs["curated"], rows, px, changed):
        images[positions] = squares
    return images


def _encode_shard(
    job: Job, rows: pa.Table, images: UInt8, words: CaptionTokenizer, tokenizer: ImageTokenizer, ready: ImageTokenizer
) -> Part:
    """Encode one shard; ``ready`` is the tokenizer prepared for that. A sample of it is decoded, to see the round trip."""
    config: EncodeConfig = job.config
    ids = encode_ids(ready, images, job.runtime, config.batch_size)
    sample = slice(None, None, -(-rows.num_rows // _ROUND_TRIP))
    made = decode_ids(tokenizer, ids[sample], job.runtime, config.batch_size)
    texts = [words.encode(caption) for caption in rows["caption"].to_pylist()]
    cut = sum(len(t) > config.max_text_tokens for t in texts)
    tokens = pa.FixedSizeListArray.from_arrays(
        pa.array(ids.numpy().astype(np.uint16).reshape(-1)), tokenizer.num_tokens
    )
    schema = token_row(tokenizer.num_tokens).with_metadata(_metadata(job, words, tokenizer))
    table = pa.table(
        [
            rows["id"],
            rows["caption"],
            rows["split"],
            rows["weight"],
            pa.array([t[: config.max_text_tokens] for t in texts], pa.list_(pa.uint16())),
            tokens,
            rows["augmentation"],
        ],
        schema=schema,
    )
    out = io.BytesIO()
    # Uniform 16-bit codes gain nothing from a dictionary; split into byte planes they write 1.7 times as fast.
    leaf = "image_tokens.list.element"
    pq.write_table(
        table,
        out,
        compression="zstd",
        row_group_size=4096,
        use_dictionary=["split", "caption"],
        column_encoding={leaf: "BYTE_STREAM_SPLIT"},
    )
    obj = job.put(out.getvalue(), ext="parquet", role="tokens", rows=table.num_rows)
    splits = dict(
        zip(
            *(v.tolist() for v in np.unique(rows["split"].to_numpy(zero_copy_only=False), return_counts=True)),
            strict=True,
        )
    )
    stats = {
        "splits": splits,
        "cut_captions": int(cut),
        "codes": np.bincount(ids.numpy().reshape(-1), minlength=tokenizer.vocab_size).tolist(),
        "round_trip_psnr": float(psnr(made, to_float(images[sample])).mean()),
        "perplexity": code_usage(ids, tokenizer.vocab_size)[0],
    }
    return Part(objects=(obj,), stats=stats)


def _metadata(job: Job, words: CaptionTokenizer, tokenizer: ImageTokenizer) -> dict[str, str]:
    """What a reader must know to use the tokens; a trainer refuses tokens of another tokenizer by it."""
    return {
        "record": "TokenRow",
        "record_version": "1",
        "tokenizer": job.inputs["tokenizer"].fingerprint,
        "pixel_transform": tokenizer.pixel_transform,
        "image_px": str(tokenizer.config.image_px),
        "image_vocab_size": str(tokenizer.vocab_size),
        "grid": str(tokenizer.grid),
        "code_levels": json.dumps(tokenizer.code_levels),
        "text_vocab_size": str(words.vocab_size),
        "max_text_tokens": str(job.config.max_text_tokens),
    }
