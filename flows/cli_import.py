"""Commands that bring published weights into the store."""

from typing import Annotated

import typer

from flows.cli_app import DEFAULT_STORE, Debug, Json, Store, app, emit, settings_of


@app.command("import-tokenizer")
def import_tokenizer(
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="OpenAI's `encoder.pkl`: a path or s3:// URI.")],
    decoder: Annotated[str, typer.Argument(metavar="DECODER", help="OpenAI's `decoder.pkl`.")],
    image_px: Annotated[int, typer.Option("--px", help="Side of the pictures it will be given, px.")] = 256,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make OpenAI's published dVAE an **image tokenizer** of the store; nothing in its pickles is executed.

    Then: `dalle encode CURATED --tokenizer REF`.
    """
    from flows import commands

    config = {"encoder": encoder, "decoder": decoder, "image_px": image_px}
    result = commands.run_beside("import-tokenizer", config, settings_of(store))
    emit(as_json, result.payload, result.lines)
