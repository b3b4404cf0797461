"""The stages as Prefect tasks: name, retries, tags, progress and pictures in the UI around ``tasks.step.run_step``.

Results are small JSON and Prefect's cache is off: the fingerprint in the store decides what is done.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.task_runners import TaskRunner
from prefect.tasks import Task

from dalle_model.config import Section
from dalle_model.errors import CommitConflict, DalleError, StepFailed, StepTimeout, StoreUnreachable, UsageError
from tasks.artifacts import ArtifactRef
from tasks.display import Listener, step_display
from tasks.groups import groups_of, run_pieces
from tasks.plain import Step, bind
from tasks.settings import Settings
from tasks.stages import stage_named
from tasks.step import Stage, StepResult, open_store, run_step
from tasks.ui import ProgressReporter, publish

# Worth another try: a killed child, a store out of reach, or a failure nobody foresaw. A wrong setting stays wrong,
# and a deadline was set to be kept: what goes on after it was asked for by nobody.
_TRANSIENT = (StepFailed, StoreUnreachable, CommitConflict)
_DELAYS_S: list[float] = [5, 30]  # before the second and the third try


def _worth_retrying(_: Task[..., Any], __: Any, state: State[Any]) -> bool:
    try:
        state.result(raise_on_failure=True)
    except Exception as error:
        return _passing(error)
    return False


def _passing(error: Exception) -> bool:
    if isinstance(error, StepTimeout):
        return False
    return isinstance(error, _TRANSIENT) or not isinstance(error, DalleError)


def say_again(error: Exception, tries: int, listen: Listener) -> None:
    """Say why a step fails and when it is tried again, if it is. ``tries`` of it have ended, this one included."""
    if _passing(error) and tries <= len(_DELAYS_S):
        text = str(error).removesuffix(error.again if isinstance(error, DalleError) else "")
        listen({"event": "log", "text": f"{text}; trying again in {_DELAYS_S[tries - 1]:g} s"})


def _display(stage: str) -> AbstractContextManager[Listener]:
    """The terminal's display for a command; a worker's terminal has Prefect's log, which says the same."""
    return nullcontext(lambda event: None) if runtime.deployment.id else step_display(stage)


@contextmanager
def _listening(stage: str) -> Iterator[Listener]:
    """A listener that shows a step's events on the terminal and in the run."""
    with _display(stage) as display:
        reporter = ProgressReporter(stage)

        def listen(event: dict[str, Any]) -> None:
            display(event)
            reporter(event)

        yield listen


@task(
    name="shard-group",
    description="Make some pieces of a stage; the stage's own task then finds them and commits.",
    tags=["dalle", "shard-group"],
    retries=len(_DELAYS_S),
    retry_delay_seconds=_DELAYS_S,
    retry_condition_fn=_worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def shard_group(
    stage_name: str, config: Section, settings: Settings, inputs: dict[str, ArtifactRef], group: tuple[int, int]
) -> tuple[int, int]:
    """Pieces ``group[0]`` to ``group[1]`` - 1 of a stage, wherever the task runner puts this."""
    run_pieces(stage_named(stage_name), config, inputs, settings, group)
    return group


def share_out(work: Task[..., Any], parameters: Iterable[dict[str, Any]], settings: Settings) -> None:
    """Run a Prefect task for each set of parameters on the task runner that the settings name, and wait for all.

    Raises the first error when all have ended: what the others made is kept.
    """
    with ExitStack() as stack:
        if settings.task_runner:
            runner = stack.enter_context(task_runner(settings))
            futures: list[Any] = [runner.submit(work, p) for p in parameters]
        else:
            futures = [work.submit(**p) for p in parameters]
        for future in futures:
            future.wait()
        for future in futures:
            future.result()


def task_runner(settings: Settings) -> TaskRunner[Any]:
    """The runner of ``settings.task_runner``. UsageError when its package is not installed."""
    kind, _, address = settings.task_runner.partition(":")
    try:
        if kind == "dask":
            from prefect_dask.task_runners import DaskTaskRunner

            if address:
                return DaskTaskRunner(address=address)
            cluster = {"n_workers": settings.shard_groups, "threads_per_worker": 1, "dashboard_address": None}
            return DaskTaskRunner(cluster_kwargs=cluster)
        from prefect_ray import RayTaskRunner  # type: ignore[import-not-found]

        runner: TaskRunner[Any] = (
            RayTaskRunner(address=address)
            if address
            else RayTaskRunner(init_kwargs={"num_cpus": settings.shard_groups})
        )
        return runner
    except ImportError as error:
        raise UsageError(
            f"DALLE_TASK_RUNNER={settings.task_runner} needs the package {error.name}; run `pip install 'dalle-prefect[{kind}]'`"
        ) from error


def stage_task(stage: Stage) -> Step:
    """A Prefect task that runs ``stage``: ``task(config, settings, **inputs) -> StepResult``.

    Where a stage's pieces can be shared and the settings ask for it, they are shared out over the task runner first.
    """

    @task(
        name=stage.name,
        description=(stage.config.__doc__ or "").strip(),
        tags=["dalle", stage.name],
        retries=len(_DELAYS_S),
        retry_delay_seconds=_DELAYS_S,
        retry_condition_fn=_worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run(config: Section, settings: Settings, **inputs: ArtifactRef) -> StepResult:
        with _listening(stage.name) as listen:
            try:
                result = run_step(stage, config, inputs, settings, listen)
            except Exception as error:
                say_again(error, runtime.task_run.run_count, listen)
                raise
            store = open_store(settings)
            manifest = store.find(result.ref.step, result.ref.fingerprint)
            if manifest is not None:
                publish(
                    manifest, store, decision=result.decision, say=lambda text: listen({"event": "log", "text": text})
                )
        return result

    def shared_run(config: Section, settings: Settings, **inputs: ArtifactRef) -> StepResult:
        with _listening(stage.name) as listen:
            groups = groups_of(stage, config, inputs, settings, listen)
        if groups:
            parameters = [
                {"stage_name": stage.name, "config": config, "settings": settings, "inputs": inputs, "group": group}
                for group in groups
            ]
            share_out(shard_group, parameters, settings)
        return run(config, settings, **inputs)

    return shared_run if stage.pieces else run


STEPS = bind(stage_task)
ingest, curate, fit_tokenizer, encode, fit, evaluate, generate, fit_generator = STEPS
