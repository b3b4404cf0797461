"""The flow of each stage, by the stage's name."""

from prefect import Flow

from flows import dataset, evaluation, generation, training

FLOWS: dict[str, Flow] = {  # type: ignore[type-arg]
    "ingest": dataset.ingest,
    "curate": dataset.curate,
    "fit-tokenizer": training.fit_tokenizer,
    "encode": dataset.encode,
    "fit": training.fit,
    "evaluate": evaluation.evaluate,
    "generate": generation.generate,
}
