"""Stage import-tokenizer: OpenAI's published dVAE becomes an image tokenizer of the store, without executing its pickles."""

import hashlib
from pathlib import Path

from dalle_model.config import ImportTokenizerConfig
from dalle_model.errors import DataError
from dalle_model.reference_weights import load_openai_dvae
from dalle_model.tokenizers.registry import tokenizer_to_bytes
from tasks.job import Job, Outcome
from tasks.prompts import read_uri
from tasks.training import curve_object


def work(job: Job) -> Outcome:
    """Read both files, and store weights and config as a trained tokenizer has them."""
    config: ImportTokenizerConfig = job.config
    encoder, decoder = _local(job, "encoder", config.encoder), _local(job, "decoder", config.decoder)
    tokenizer = load_openai_dvae(encoder, decoder, image_px=config.image_px)
    encoder.unlink()
    decoder.unlink()
    weights, described = tokenizer_to_bytes(tokenizer)
    objects = (
        job.put(weights, ext="safetensors", role="weights"),
        job.put(described, ext="json", role="config"),
        curve_object(job, []),  # it was not trained here
    )
    stats = {
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "vocab_size": tokenizer.vocab_size,
        "steps": 0,
    }
    return Outcome(objects, 0, stats)


def _local(job: Job, name: str, uri: str) -> Path:
    """A file by path or URI in the spool, the same bytes that the fingerprint was taken from."""
    data = read_uri(uri, job.settings)
    if hashlib.sha256(data).hexdigest() != job.spec.recorded_config["outside"][name]:
        raise DataError(f"{uri} changed since this run began; start again")
    path = job.spool / f"{name}.pkl"
    path.write_bytes(data)
    return path
