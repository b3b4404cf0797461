"""The command line: ``dalle run PRESET``, one command per stage, and commands to look at what was made.

Commands parse and print; what they do lives in ``flows.commands`` and below, and is imported only when it is needed.
"""

import atexit
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from dalle_model.errors import DalleError, UsageError

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
INTERRUPTED = 130  # exit code, 128 + SIGINT


def _settings(store: str, device: str = "auto", deadline: float = 0.0) -> Any:
    """Settings of this process. They are also put into the environment: a flow makes its own from there."""
    from tasks.settings import Settings

    os.environ.update(DALLE_STORE=store, DALLE_DEVICE=device, DALLE_DEADLINE_S=str(deadline))
    try:
        return Settings()
    except ValueError as error:
        raise UsageError(_first_problem(error)) from None


def _first_problem(error: ValueError) -> str:
    problems: list[dict[str, Any]] = getattr(error, "errors", list)()
    if not problems:
        return str(error)
    where = ".".join(str(part) for part in problems[0]["loc"])
    return f"{where}: {problems[0]['msg']} (given {problems[0]['input']!r})"


def _emit(as_json: bool, payload: dict[str, Any], lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(payload))


@app.command()
def run(
    preset: Annotated[str, typer.Argument(help="Name of a preset; `dalle presets` lists them.")],
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    out: Out = Path("outputs"),
    plain: Annotated[bool, typer.Option("--plain", help="Without Prefect: the same steps as plain functions.")] = False,
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the **whole chain**: ingest, curate, fit-tokenizer, encode, fit, evaluate, generate.

    Uses the Prefect API that is configured, or Prefect's own temporary server. Steps whose result is already in the
    store are reused; a killed run goes on where it was.
    """
    from flows import commands

    result = commands.run_chain(
        commands.preset_config(preset, sets or []),
        _settings(store, device, deadline),
        out / preset,
        plain=plain,
        debug=debug,
    )
    _emit(as_json, result.payload, result.lines)


@app.command()
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            help="`openmoji`, `scenes[:COUNT]`, `imagefolder:PATH`, `hf:NAME[:CONFIG][:SPLIT]`, `parquet:`, `jsonl:`, `csv:` or `webdataset:` with a path."
        ),
    ],
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read a source of captioned pictures into checked, re-encoded **pairs**."""
    _stage("ingest", {}, [f"ingest.source={source}", *(sets or [])], store, preset, "auto", deadline, as_json, debug)


@app.command()
def curate(
    pairs: Ref,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score pairs by the curation rules, drop what fails with a reason, and assign **splits**."""
    _stage("curate", {"pairs": pairs}, sets or [], store, preset, "auto", deadline, as_json, debug)


@app.command("fit-tokenizer")
def fit_tokenizer(
    curated: Ref,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the **image tokenizer** on curated pairs."""
    _stage("fit-tokenizer", {"curated": curated}, sets or [], store, preset, device, deadline, as_json, debug)


@app.command()
def encode(
    curated: Ref,
    tokenizer: Annotated[str, typer.Option("--tokenizer", metavar="REF", help="The image tokenizer.")],
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn curated pairs into image and text **tokens** in Parquet."""
    _stage(
        "encode",
        {"curated": curated, "tokenizer": tokenizer},
        sets or [],
        store,
        preset,
        device,
        deadline,
        as_json,
        debug,
    )


@app.command()
def fit(
    tokens: Ref,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the **transformer** on tokens."""
    _stage("fit", {"tokens": tokens}, sets or [], store, preset, device, deadline, as_json, debug)


@app.command()
def evaluate(
    model: Ref,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    out: Out = Path("outputs/evaluate"),
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """**Measure** a model and write its report."""
    _stage("evaluate", {"model": model}, sets or [], store, preset, device, deadline, as_json, debug, out)


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="Prompts to draw.")] = None,
    prompts_uri: Annotated[
        str, typer.Option("--prompts", metavar="URI", help="File of prompts: txt, jsonl, csv or parquet.")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", metavar="REF", help="The model; a name is resolved once.")
    ] = "latest",
    n: Annotated[int, typer.Option("--n", help="Pictures per prompt.")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Root seed.")] = 0,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    out: Out = Path("outputs/generate"),
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """**Draw** pictures for prompts, and write them to a folder with a gallery."""
    if not prompts and not prompts_uri:
        raise UsageError('no prompt given; write one, e.g. dalle generate "a red heart", or a file with --prompts URI')
    assignments = [
        f"generate.prompts={json.dumps(prompts or [])}",
        f"generate.prompts_uri={prompts_uri}",
        f"generate.n={n}",
        f"generate.seed={seed}",
    ]
    _stage(
        "generate",
        {"model": model},
        [*assignments, *(sets or [])],
        store,
        preset,
        device,
        deadline,
        as_json,
        debug,
        out,
    )


def _stage(
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
    from flows import commands

    result = commands.run_stage(
        name, refs, commands.preset_config(preset, sets), _settings(store, device, deadline), out, debug=debug
    )
    _emit(as_json, result.payload, result.lines)


@app.command("ls")
def list_artifacts(
    kind: Annotated[str, typer.Option("--kind", help="Only artifacts of this kind or stage.")] = "",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List artifacts and names, newest last."""
    from flows import inspection

    _emit(as_json, *inspection.list_artifacts(_settings(store), kind))


@app.command()
def show(ref: Ref, store: Store = DEFAULT_STORE, as_json: Json = False, debug: Debug = False) -> None:
    """Show what an artifact is: its inputs, settings, figures and objects."""
    from flows import inspection

    _emit(as_json, *inspection.show(_settings(store), ref))


@app.command()
def verify(ref: Ref, store: Store = DEFAULT_STORE, as_json: Json = False, debug: Debug = False) -> None:
    """Check every hash of an artifact; exit code 1 and the object's name when one differs."""
    from flows import inspection

    payload, lines, healthy = inspection.verify(_settings(store), ref)
    _emit(as_json, payload, lines)
    if not healthy:
        raise typer.Exit(1)


@app.command()
def explain(
    what: Annotated[str, typer.Argument(metavar="REF|STAGE", help="An artifact, or the name of a stage.")],
    sets: Sets = None,
    preset: Preset = "quickstart",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say why an artifact was made, or whether a stage of a preset would run again and because of which knob."""
    from flows import commands, inspection

    _emit(as_json, *inspection.explain(_settings(store), what, commands.preset_config(preset, sets or [])))


@app.command()
def promote(
    ref: Ref,
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Name to give it.")] = "production",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Give an artifact a name, atomically; the scheduled generation draws with `production`."""
    from flows import inspection

    _emit(as_json, *inspection.promote(_settings(store), ref, name))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="A name given by `dalle promote`.")] = "production",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Give a name back to the artifact that had it before."""
    from flows import inspection

    _emit(as_json, *inspection.rollback(_settings(store), name))


@app.command()
def sweep(
    older_than_h: Annotated[float, typer.Option("--older-than", metavar="HOURS", help="Leave what is younger.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove objects that no artifact names: left-overs of interrupted steps."""
    from flows import inspection

    _emit(as_json, *inspection.sweep(_settings(store), older_than_h, dry_run))


@app.command()
def export(
    ref: Ref,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder to write.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write pairs or curated pairs as an imagefolder, with every rejected row and its reason in `rejected.csv`."""
    from flows import inspection

    _emit(as_json, *inspection.export(_settings(store), ref, folder))


@app.command("what-if")
def what_if(
    ref: Ref,
    sets: Sets = None,
    preset: Preset = "quickstart",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Rows gained and lost by moving each threshold of a **curated** artifact, from its stored scores."""
    from flows import commands, inspection

    _emit(as_json, *inspection.what_if(_settings(store), ref, commands.preset_config(preset, sets or [])))


@app.command()
def presets(as_json: Json = False) -> None:
    """List the presets with what they need and what to expect."""
    from flows import inspection

    _emit(as_json, *inspection.list_presets())


@app.command("config")
def show_config(
    preset: Annotated[str, typer.Argument(help="Name of a preset.")] = "quickstart",
    sets: Sets = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List every knob of a preset: value, allowed range, meaning."""
    from flows import commands, inspection

    _emit(as_json, *inspection.show_config(commands.preset_config(preset, sets or [])))


@app.command()
def doctor(store: Store = DEFAULT_STORE, as_json: Json = False, debug: Debug = False) -> None:
    """Check this machine: versions, devices, the store's promises, the Prefect API."""
    from flows import inspection

    payload, lines, healthy = inspection.doctor(_settings(store))
    _emit(as_json, payload, lines)
    if not healthy:
        raise typer.Exit(1)


@app.command()
def deploy(store: Store = DEFAULT_STORE, debug: Debug = False) -> None:
    """Create the work pool, all deployments and the crash detector on the configured Prefect API."""
    from flows import deployments

    for line in deployments.deploy(store=store):
        print(line)


@app.command()
def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the Prefect UI and API.")] = 4200,
    store: Store = DEFAULT_STORE,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            metavar="DIR",
            help="Folder of Prefect's database; PREFECT_HOME, or a folder of ours where that is not set.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Server, worker and deployments on this machine, until Ctrl-C."""
    from flows.up import up as run_server_and_worker

    run_server_and_worker(host=host, port=port, store=store, home=home)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 failed with a named error, 2 wrong usage, 130 interrupted."""
    leave = _Leave()
    if arguments is None:  # registered before any import that matters, so it runs after all other handlers
        atexit.register(leave)
    arguments = sys.argv[1:] if arguments is None else arguments
    code: object = 0
    try:
        with _sigterm_interrupts():
            app(arguments, prog_name="dalle")  # ends by SystemExit, also when usage was wrong (2) or Ctrl-C came (130)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        code = _report(error, "--debug" in arguments)
    if code == INTERRUPTED:
        print("interrupted; run the same command again to go on", file=sys.stderr)
    leave.code = code if isinstance(code, int) else 0 if code is None else 1
    raise SystemExit(code)


class _Leave:
    """The last exit handler: ends the process before C++ destructors run.

    Arrow's threads are now and then still being joined when its statics are destroyed; the process then aborts after
    its work is done ("terminate called without an active exception") and its exit code is lost.
    """

    code = 1

    def __call__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.code)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM acts like Ctrl-C: a step saves a checkpoint and ends its processes instead of dying where it stands.

    SIGINT is set as well: a shell that starts us in the background has it ignored, and `kill -INT` would do nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(error: Exception, debug: bool) -> int:
    if isinstance(error, DalleError):
        print(f"error: {error}", file=sys.stderr)
    else:
        print(f"error: {type(error).__name__}: {error} (unexpected; --debug shows the trace)", file=sys.stderr)
    if debug:
        traceback.print_exception(error)
    return 2 if isinstance(error, UsageError) else 1
