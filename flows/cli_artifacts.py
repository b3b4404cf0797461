"""Commands that look at artifacts, name them, write them out and clean up; and what there is to configure."""

from typing import Annotated

import typer

from flows.cli_app import DEFAULT_STORE, Debug, Json, Preset, Ref, Sets, Store, app, emit, settings_of


@app.command("ls")
def list_artifacts(
    kind: Annotated[str, typer.Option("--kind", help="Only artifacts of this kind or stage.")] = "",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List artifacts and names, newest last."""
    from flows import inspection

    emit(as_json, *inspection.list_artifacts(settings_of(store), kind))


@app.command()
def show(ref: Ref, store: Store = DEFAULT_STORE, as_json: Json = False, debug: Debug = False) -> None:
    """Show what an artifact is: its inputs, settings, figures and objects."""
    from flows import inspection

    emit(as_json, *inspection.show(settings_of(store), ref))


@app.command()
def verify(ref: Ref, store: Store = DEFAULT_STORE, as_json: Json = False, debug: Debug = False) -> None:
    """Check every hash of an artifact; exit code 1 and the object's name when one differs."""
    from flows import inspection

    payload, lines, healthy = inspection.verify(settings_of(store), ref)
    emit(as_json, payload, lines)
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

    emit(as_json, *inspection.explain(settings_of(store), what, commands.preset_config(preset, sets or [])))


@app.command()
def promote(
    ref: Ref,
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Name to give it.")] = "production",
    force: Annotated[
        bool, typer.Option("--force", help="Also a model that does not beat the one in production.")
    ] = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Give an artifact a name, atomically; the scheduled generation draws with `production`.

    A model takes over `production` from another one only when it is better on the same prompts (`dalle compare`).
    """
    from flows import comparison

    emit(as_json, *comparison.promote(settings_of(store), ref, name, force=force))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="A name given by `dalle promote`.")] = "production",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Give a name back to the artifact that had it before."""
    from flows import inspection

    emit(as_json, *inspection.rollback(settings_of(store), name))


@app.command()
def sweep(
    older_than_h: Annotated[float, typer.Option("--older-than", metavar="HOURS", help="Leave what is younger.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    forgotten: Annotated[
        bool, typer.Option("--forgotten", help="First the artifacts made with pairs that `dalle forget` withdrew.")
    ] = False,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="With --forgotten: erase these pairs from the shards of sound artifacts, too."),
    ] = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove objects that no artifact names: left-overs of interrupted steps."""
    from flows import inspection

    emit(as_json, *inspection.sweep(settings_of(store), older_than_h, dry_run, forgotten, pairs))


@app.command()
def export(
    ref: Ref,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="New folder to write, or s3://BUCKET/PREFIX.")],
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write pairs as an imagefolder with `rejected.csv`, or a **model** as safetensors, JSON and a model card."""
    from flows import inspection

    emit(as_json, *inspection.export(settings_of(store), ref, folder))


@app.command("what-if")
def what_if(
    ref: Ref,
    sets: Sets = None,
    preset: Preset = "quickstart",
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Rows gained and lost by moving each threshold, from stored scores; the same as `dalle curate REF --what-if`."""
    from flows import curation

    emit(as_json, *curation.what_if(settings_of(store), ref, preset, sets or [], debug=debug))


@app.command()
def presets(as_json: Json = False) -> None:
    """List the presets with what they need and what to expect."""
    from flows import inspection

    emit(as_json, *inspection.list_presets())


@app.command("config")
def show_config(
    preset: Annotated[str, typer.Argument(help="Name of a preset.")] = "quickstart",
    sets: Sets = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List every knob of a preset: value, allowed range, meaning."""
    from flows import commands, inspection

    emit(as_json, *inspection.show_config(commands.preset_config(preset, sets or [])))


@app.command()
def doctor(store: Store = DEFAULT_STORE, as_json: Json = False, debug: Debug = False) -> None:
    """Check this machine: versions, devices, the store's promises, the Prefect API."""
    from flows import inspection

    payload, lines, healthy = inspection.doctor(settings_of(store))
    emit(as_json, payload, lines)
    if not healthy:
        raise typer.Exit(1)
