"""Commands that put the flows on a Prefect server."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_app import DEFAULT_STORE, Debug, Store, app


@app.command()
def deploy(store: Store = DEFAULT_STORE, debug: Debug = False) -> None:
    """Create the work pool, all deployments and the crash detectors on the configured Prefect API."""
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
