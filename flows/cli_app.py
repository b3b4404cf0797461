"""The typer application, its options and what commands share. Commands register on ``app`` in the modules ``flows.cli_*``."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_model.errors import UsageError

app = typer.Typer(
    name="dalle",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train and run a text-to-image model as a pipeline that survives a kill at any moment.\n\n"
    "Start with `dalle run quickstart`. Every step's result is kept in the store under the fingerprint of what made it, "
    "so running anything again continues or reuses it.",
)

Store = Annotated[
    str,
    typer.Option(
        "--store", envvar="DALLE_STORE", metavar="URI", help="Artifact store: a folder or s3://bucket/prefix."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one knob, e.g. `--set train.steps=200`. Repeatable; `dalle config` lists all.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error and Prefect's log.")]
Device = Annotated[str, typer.Option("--device", envvar="DALLE_DEVICE", help="auto, cpu, mps, cuda or cuda:N.")]
Deadline = Annotated[
    float, typer.Option("--deadline", envvar="DALLE_DEADLINE_S", help="Stop a step after this many seconds; 0 = never.")
]
Preset = Annotated[str, typer.Option("--preset", help="Preset whose settings the command starts from.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the pages and pictures to look at.")]
Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF", help="Fingerprint, unique prefix of one, manifest URI, or name such as `production`."
    ),
]

DEFAULT_STORE = "./artifacts"


def settings_of(store: str, device: str = "auto", deadline: float = 0.0) -> Any:
    """Settings of this process. They are also put into the environment: a flow makes its own from there."""
    from flows.overrides import first_problem
    from tasks.settings import Settings

    os.environ.update(DALLE_STORE=store, DALLE_DEVICE=device, DALLE_DEADLINE_S=str(deadline))
    try:
        return Settings()
    except ValueError as error:
        raise UsageError(first_problem(error)) from None


def emit(as_json: bool, payload: dict[str, Any], lines: list[str]) -> None:
    """Print the lines for a person; with ``--json`` on standard error, and the payload as the last line of output."""
    for line in lines:
        print(line, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(payload))


def run_one(
    name: str,
    refs: dict[str, str],
    sets: list[str],
    store: str,
    preset: str,
    device: str,
    deadline: float,
    as_json: bool,
    debug: bool,
    out: Path | None = None,
) -> None:
    """Run one stage on the artifacts that ``refs`` name, and print what it made."""
    from flows import commands

    result = commands.run_stage(
        name, refs, commands.preset_config(preset, sets), settings_of(store, device, deadline), out, debug=debug
    )
    emit(as_json, result.payload, result.lines)
