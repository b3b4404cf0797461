"""The tiny preset, made smaller still, and one undisturbed run of it to compare with."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.in_process import steps_in_this_process

from dalle_model.config import PipelineConfig, Section
from flows.overrides import override
from flows.presets import PRESETS
from tasks.artifacts import ArtifactRef, Manifest
from tasks.plain import Step, Steps, bind
from tasks.settings import Settings
from tasks.stages import STAGES
from tasks.step import Stage, StepResult, plan, run_step
from tasks.store import Store

# Several shards and several checkpoints in each stage, so that there is something to lose; little work in each.
SETS = (
    "ingest.limit=96",
    "ingest.rows_per_shard=32",
    "tokenizer.min_perplexity_share=0",
    "tokenizer.steps=9",
    "tokenizer.checkpoint_every=3",
    "tokenizer.batch_size=8",
    "tokenizer.log_every=1",
    "tokenizer.sample_every=3",
    "encode.rows_per_shard=32",
    "train.steps=9",
    "train.checkpoint_every=3",
    "train.batch_size=8",
    "train.log_every=1",
    "train.sample_every=3",
    "evaluate.num_captions=4",
    "evaluate.num_heldout=2",
    "evaluate.judge_steps=3",
    "evaluate.packaged=false",
    "evaluate.num_unseen=8",
    "generate.rows_per_shard=1",
)
ORDER = tuple(STAGES)


def tiny_config(*assignments: str) -> PipelineConfig:
    """The configuration of ``tiny_run``, with more ``section.key=value`` laid over it."""
    return override(PRESETS["tiny"](), [*SETS, *assignments])


def command_sets(*assignments: str) -> list[str]:
    """The same as arguments of the command line."""
    return [word for assignment in (*SETS, *assignments) for word in ("--set", assignment)]


def chain(config: PipelineConfig, settings: Settings, do: Steps) -> dict[str, StepResult]:
    """The whole chain without Prefect's import, which costs seconds; ``test_chain`` compares it with the real one."""
    pairs = do.ingest(config.ingest, settings)
    curated = do.curate(config.curate, settings, pairs=pairs.ref)
    tokenizer = do.fit_tokenizer(config.tokenizer, settings, curated=curated.ref)
    tokens = do.encode(config.encode, settings, curated=curated.ref, tokenizer=tokenizer.ref)
    model = do.fit(config.fit, settings, tokens=tokens.ref)
    evaluation = do.evaluate(config.evaluate, settings, model=model.ref)
    generations = do.generate(config.generate, settings, model=model.ref)
    return {r.ref.step: r for r in (pairs, curated, tokenizer, tokens, model, evaluation, generations)}


def quietly(stage: Stage) -> Step:
    """Run a stage as a plain function without a progress bar."""

    def run(config: Section, settings: Settings, **inputs: ArtifactRef) -> StepResult:
        return run_step(stage, config, inputs, settings)

    return run


def section_of(stage: str, config: PipelineConfig) -> Any:
    """The part of a pipeline's configuration that a stage reads."""
    return getattr(config, {"fit-tokenizer": "tokenizer"}.get(stage, stage))


@dataclass(frozen=True)
class TinyRun:
    """Where the undisturbed run is, and what it made."""

    folder: Path
    config: PipelineConfig
    results: Mapping[str, StepResult]

    @property
    def store(self) -> Store:
        """Its store; not to be written to."""
        return Store.open(self.folder)

    def manifest(self, stage: str) -> Manifest:
        """What a stage committed."""
        ref = self.results[stage].ref
        found = self.store.find(ref.step, ref.fingerprint)
        assert found is not None
        return found

    def inputs(self, stage: str) -> dict[str, ArtifactRef]:
        """The references that a stage was given."""
        by_kind = {STAGES[name].kind: result.ref for name, result in self.results.items()}
        return {name: by_kind[name] for name in STAGES[stage].inputs}

    def copy(self, folder: Path, *, before: str = "") -> Path:
        """A store of its own with everything, or with what the stages before one made and nothing of that one."""
        stages = ORDER[: ORDER.index(before)] if before else ORDER
        for stage in stages:
            manifest = self.manifest(stage)
            for key in (
                *(o.key for o in manifest.objects),
                self.store.manifest_key(manifest.step, manifest.fingerprint),
            ):
                target = folder / key
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.folder / key, target)
        return folder


def run_once(folder: Path) -> TinyRun:
    """Run the chain into an empty store. What processes of their own make is compared with it by many tests."""
    config = tiny_config()
    with steps_in_this_process():
        results = chain(config, Settings(store=str(folder)), bind(quietly))
    return TinyRun(folder, config, results)


def fingerprints(config: PipelineConfig, tiny: TinyRun) -> dict[str, str]:
    """The fingerprint of every stage under another configuration, without running any."""
    settings = Settings(store=str(tiny.folder))
    refs: dict[str, ArtifactRef] = {}
    for stage in STAGES.values():
        inputs = {name: refs[name] for name in stage.inputs}
        planned = plan(stage, section_of(stage.name, config), inputs, settings)
        refs[stage.kind] = tiny.results[stage.name].ref.model_copy(update={"fingerprint": planned.fingerprint})
    return {ref.step: ref.fingerprint for ref in refs.values()}
