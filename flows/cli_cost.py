"""The command that prices a preset before it is run."""

from typing import Annotated

import typer

from flows.cli_app import Debug, Json, Sets, app, emit


@app.command("cost")
def show_cost(
    preset: Annotated[str, typer.Argument(help="Name of a preset; `dalle presets` lists them.")] = "quickstart",
    gpus: Annotated[int, typer.Option("--gpus", min=1, max=100_000, help="Devices that train together.")] = 1,
    sets: Sets = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a preset **costs**: parameters, memory of one GPU, FLOPs per picture and for the training. Runs nothing."""
    from flows import commands, cost

    emit(as_json, *cost.cost(preset, commands.preset_config(preset, sets or []), gpus))
