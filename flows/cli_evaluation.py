"""Commands that measure models and tell which of two is better."""

from pathlib import Path
from typing import Annotated

import typer

from dalle_model.errors import UsageError
from flows.cli_app import (
    DEFAULT_STORE,
    Deadline,
    Debug,
    Device,
    Json,
    Out,
    Preset,
    Ref,
    Sets,
    Store,
    app,
    emit,
    run_one,
    settings_of,
)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="[REF]", help="The model to measure.", show_default=False)] = "",
    against: Annotated[
        str,
        typer.Option(
            "--against", metavar="REF", help="Model that the report compares with; '' = none. It is evaluated, too."
        ),
    ] = "production",
    reproduce: Annotated[
        str,
        typer.Option(
            "--reproduce", metavar="EVALUATION[:FIGURE]", help="Compute an evaluation again; exit 1 if a digit differs."
        ),
    ] = "",
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="REF",
            help="Curated pairs of another source, drawn in place of held-out captions; refused where training touches them.",
        ),
    ] = "",
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    out: Out = Path("outputs/evaluate"),
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """**Measure** a model and write its report; or compute an evaluation's figures again to the last digit."""
    from flows import commands, comparison

    if bool(model) == bool(reproduce):
        raise UsageError("give a model to measure, or --reproduce EVALUATION[:FIGURE], and not both")
    settings = settings_of(store, device, deadline)
    if reproduce:
        payload, lines, equal = comparison.reproduce_figures(settings, reproduce)
        emit(as_json, payload, lines)
        if not equal:
            raise typer.Exit(1)
        return
    if on:  # the other model was measured on captions of its own: there is nothing to pair with
        refs = {"model": model, "curated": on}
        run_one("evaluate", refs, sets or [], store, preset, device, deadline, as_json, debug, out)
        return
    baseline = comparison.baseline_of(settings, model, commands.preset_config(preset, sets or []).evaluate, against)
    chosen = [*(sets or []), *([f"evaluate.baseline={baseline}"] if baseline else [])]
    run_one("evaluate", {"model": model}, chosen, store, preset, device, deadline, as_json, debug, out)


@app.command()
def compare(
    first: Ref,
    second: Ref,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    out: Out = Path("outputs/compare"),
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Which of two models (or evaluations) is **better** on the same prompts and seeds, by paired tests.

    Models that have no evaluation with these settings are evaluated first.
    """
    from flows import commands, comparison

    settings = settings_of(store, device, deadline)
    config = commands.preset_config(preset, sets or []).evaluate
    emit(as_json, *comparison.compare_models(settings, first, second, config, out))


@app.command()
def compress(
    model: Ref,
    kind: Annotated[
        str, typer.Option("--weights", metavar="int8|half", help="The smaller weights that are tried.")
    ] = "int8",
    margin: Annotated[
        float, typer.Option("--margin", min=0, max=1, help="Loss of a figure, a share of 0 to 1, that is put up with.")
    ] = 0.1,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    out: Out = Path("outputs/compress"),
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Are a model's pictures as good with **smaller weights**? Exit code 1 unless the pairs show it.

    Evaluates the model with both kinds where that was not done, and keeps the decision under the name KIND-MODEL.
    """
    from flows import commands, compression

    settings = settings_of(store, device, deadline)
    config = commands.preset_config(preset, sets or []).evaluate
    payload, lines = compression.compress(settings, model, config, kind, margin, out)
    emit(as_json, payload, lines)
    if not payload["accepted"]:
        raise typer.Exit(1)


@app.command("cross-validate")
def cross_validate(
    preset: Annotated[str, typer.Argument(help="Name of a preset; `dalle presets` lists them.")],
    folds: Annotated[int, typer.Option("--folds", min=2, max=100, help="Number of folds: as many runs of the chain.")],
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    out: Out = Path("outputs/cross-validate"),
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train and measure once per **fold** of the clusters, each time on what that run has not seen."""
    from flows import commands, cross_validation

    settings = settings_of(store, device, deadline)
    emit(
        as_json,
        *cross_validation.cross_validate(settings, commands.preset_config(preset, sets or []), folds, out / preset),
    )
