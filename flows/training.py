"""Training: the image tokenizer, the transformer, and generators without prompts."""

from prefect import flow

from dalle_model.config import FitConfig, GeneratorConfig, TokenizerConfig
from flows.settings import settings_for
from tasks import prefect_tasks
from tasks.step import StepResult, input_ref


@flow(name="fit-tokenizer")
def fit_tokenizer(curated: str, config: TokenizerConfig = TokenizerConfig(), store: str = "") -> StepResult:  # noqa: B008 - frozen
    """Train the image tokenizer.

    Args:
        curated: Reference of the curated pairs: fingerprint, unique prefix, manifest URI or name.
        config: Architecture and optimiser.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    s = settings_for(store)
    return prefect_tasks.fit_tokenizer(config, s, curated=input_ref(s, curated, "curated"))


@flow(name="fit")
def fit(tokens: str, config: FitConfig = FitConfig(), store: str = "", model: str = "") -> StepResult:  # noqa: B008 - frozen
    """Train the text-to-image transformer, from the start or from the weights of a model.

    Args:
        tokens: Reference of the token shards.
        config: Architecture, optimiser, and the sampler that is stored with the model.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
        model: Reference of a model whose weights to start from; `config.model` must have its shape. Empty = fresh weights.
    """
    s = settings_for(store)
    start = {"model": input_ref(s, model, "model")} if model else {}
    return prefect_tasks.fit(config, s, tokens=input_ref(s, tokens, "tokens"), **start)


@flow(name="fit-generator")
def fit_generator(curated: str, config: GeneratorConfig = GeneratorConfig(), store: str = "") -> StepResult:  # noqa: B008 - frozen
    """Train a generator that reads no prompt: a Gaussian VAE or a DCGAN.

    Args:
        curated: Reference of the curated pairs.
        config: Which of the two, its size and its optimiser.
        store: Folder or s3://bucket/prefix that keeps the artifacts; empty = the worker's own default.
    """
    s = settings_for(store)
    return prefect_tasks.fit_generator(config, s, curated=input_ref(s, curated, "curated"))
