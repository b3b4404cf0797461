"""The command that withdraws pairs."""

from typing import Annotated

import typer

from flows.cli_app import DEFAULT_STORE, Debug, Json, Store, app, emit, settings_of


@app.command()
def forget(
    what: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE_OR_ID",
            help="A pair id (or its first 8 digits), a key, or a source; `id:`, `key:` or `source:` before it says which.",
        ),
    ],
    note: Annotated[str, typer.Option("--note", help="Why, for the record.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what was made with them.")] = False,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """**Withdraw** pairs: list and mark all that was made with them; the next run leaves them out."""
    from flows import forget as command

    emit(as_json, *command.run(settings_of(store), what, note, dry_run))
