"""The stages as plain functions, without any server. Same fingerprints, same artifacts as the Prefect tasks."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from dalle_model.config import Section
from tasks import stages
from tasks.artifacts import ArtifactRef
from tasks.display import step_display
from tasks.settings import Settings
from tasks.step import Plan, Stage, StepResult, look_up, open_store, plan, run_step


class Step(Protocol):
    """A stage bound to a way of running it."""

    def __call__(self, config: Section, settings: Settings, **inputs: ArtifactRef) -> StepResult:
        """Run the stage to a committed artifact."""


class Steps(NamedTuple):
    """The stages, each bound to the same way of running."""

    ingest: Step
    curate: Step
    fit_tokenizer: Step
    encode: Step
    fit: Step
    evaluate: Step
    generate: Step
    fit_generator: Step


def bind(way: Callable[[Stage], Step]) -> Steps:
    """Bind all stages to one way of running them."""
    return Steps(*(way(stages.stage_named(name)) for name in Steps._fields))


def here(stage: Stage) -> Step:
    """Run in a child of this process, with a progress bar."""

    def run(config: Section, settings: Settings, **inputs: ArtifactRef) -> StepResult:
        with step_display(stage.name) as display:
            return run_step(stage, config, inputs, settings, display)

    return run


class NotCommitted(Exception):
    """The stage has work to do."""

    def __init__(self, planned: Plan, decision: str) -> None:
        super().__init__(planned.stage.name)
        self.planned = planned
        self.stage = planned.stage
        self.decision = decision


def only_reuse(stage: Stage) -> Step:
    """Look the artifact up and raise NotCommitted where it is not there."""

    def run(config: Section, settings: Settings, **inputs: ArtifactRef) -> StepResult:
        store = open_store(settings)
        with step_display(stage.name) as display:
            planned = plan(stage, config, inputs, settings, display)
        manifest, decision = look_up(planned, store)
        if manifest is None:
            raise NotCommitted(planned, decision)
        ref = manifest.ref(store.manifest_uri(stage.name, planned.fingerprint))
        return StepResult(ref=ref, reused=True, seconds=0.0, decision=decision)

    return run
