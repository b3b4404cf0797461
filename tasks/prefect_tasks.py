"""The stages as Prefect tasks: name, retries, tags, progress and pictures in the UI around ``tasks.step.run_step``.

Results are small JSON and Prefect's cache is off: the fingerprint in the store decides what is done.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.tasks import Task

from dalle_model.config import Section
from dalle_model.errors import CommitConflict, DalleError, StepFailed, StepTimeout, StoreUnreachable
from tasks.artifacts import ArtifactRef
from tasks.display import Listener, step_display
from tasks.plain import Step, bind
from tasks.settings import Settings
from tasks.step import Stage, StepResult, open_store, run_step
from tasks.ui import ProgressReporter, publish

# Worth another try: a killed child, a store out of reach, or a failure nobody foresaw. A wrong setting stays wrong,
# and a deadline was set to be kept: what goes on after it was asked for by nobody.
_TRANSIENT = (StepFailed, StoreUnreachable, CommitConflict)


def _worth_retrying(_: Task[..., Any], __: Any, state: State[Any]) -> bool:
    try:
        state.result(raise_on_failure=True)
    except Exception as error:
        if isinstance(error, StepTimeout):
            return False
        return isinstance(error, _TRANSIENT) or not isinstance(error, DalleError)
    return False


def _display(stage: str) -> AbstractContextManager[Listener]:
    """The terminal's display for a command; a worker's terminal has Prefect's log, which says the same."""
    return nullcontext(lambda event: None) if runtime.deployment.id else step_display(stage)


def stage_task(stage: Stage) -> Step:
    """A Prefect task that runs ``stage``: ``task(config, settings, **inputs) -> StepResult``."""

    @task(
        name=stage.name,
        description=(stage.config.__doc__ or "").strip(),
        tags=["dalle", stage.name],
        retries=2,
        retry_delay_seconds=[5, 30],
        retry_condition_fn=_worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run(config: Section, settings: Settings, **inputs: ArtifactRef) -> StepResult:
        with _display(stage.name) as display:
            reporter = ProgressReporter(stage.name)

            def listen(event: dict[str, Any]) -> None:
                display(event)
                reporter(event)

            result = run_step(stage, config, inputs, settings, listen)
        store = open_store(settings)
        manifest = store.find(result.ref.step, result.ref.fingerprint)
        if manifest is not None:
            publish(manifest, store, decision=result.decision)
        return result

    return run


STEPS = bind(stage_task)
ingest, curate, fit_tokenizer, encode, fit, evaluate, generate, fit_generator = STEPS
