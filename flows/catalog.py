"""The flow of each stage, by the stage's name."""

from collections.abc import Callable
from typing import Any

from flows import dataset, evaluation, generation, training

FLOWS: dict[str, Callable[..., Any]] = {
    "ingest": dataset.ingest,
    "curate": dataset.curate,
    "fit-tokenizer": training.fit_tokenizer,
    "encode": dataset.encode,
    "fit": training.fit,
    "fit-generator": training.fit_generator,
    "evaluate": evaluation.evaluate,
    "generate": generation.generate,
}
