"""Commands that run the chain or one of its stages."""

import json
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
        settings_of(store, device, deadline),
        out / preset,
        plain=plain,
        debug=debug,
    )
    emit(as_json, result.payload, result.lines)


@app.command()
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            help="`openmoji`, `openclipart`, `scenes[:COUNT]`, `imagefolder:PATH`, `hf:NAME[:CONFIG][:SPLIT]`; `parquet:`, `jsonl:`, `csv:`, `webdataset:` or `urls:` with a path. PATH is a path here or s3://... Several: 'SOURCE + SOURCE * WEIGHT'."
        ),
    ],
    onto: Annotated[
        str, typer.Option("--onto", metavar="REF", help="Add to these pairs: only what is new is stored.")
    ] = "",
    retry: Annotated[
        str,
        typer.Option(
            "--retry", metavar="CLASS", help="`transient`: fetch again only what failed for a passing reason."
        ),
    ] = "",
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read a source of captioned pictures into checked, re-encoded **pairs**."""
    refs = {"pairs": onto} if onto else {}
    sets = [f"ingest.source={source}", *(sets or [])]
    if retry:
        from flows import again

        payload, lines = again.retry(retry, refs, sets, preset, settings_of(store, "auto", deadline), debug=debug)
        emit(as_json, payload, lines)
        return
    run_one("ingest", refs, sets, store, preset, "auto", deadline, as_json, debug)


@app.command()
def update(
    source: Annotated[str, typer.Argument(help="Where the new pairs are, as in `dalle ingest`.")],
    model: Annotated[str, typer.Option("--model", metavar="REF", help="The model to go on from.")] = "production",
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    promote: Annotated[
        bool, typer.Option("--promote", help="Give it the name production if it is better than the one that has it.")
    ] = False,
    out: Out = Path("outputs/update"),
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take **new data** into a model: ingest what is new, curate, encode, and train on from its weights."""
    from flows import again

    emit(
        as_json,
        *again.update(
            source, model, sets or [], preset, settings_of(store, device, deadline), out, promote=promote, debug=debug
        ),
    )


@app.command()
def curate(
    pairs: Annotated[str, typer.Argument(metavar="REF", help="Pairs; with --what-if also curated pairs.")],
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for the report and the contact sheets.")
    ] = None,
    what_if: Annotated[
        bool, typer.Option("--what-if", help="Keep all as it is; show rows gained and lost by moving each threshold.")
    ] = False,
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score pairs by the curation rules, drop what fails with a reason, and assign **splits**."""
    if what_if:
        from flows import curation

        emit(as_json, *curation.what_if(settings_of(store, "auto", deadline), pairs, preset, sets or [], debug=debug))
        return
    run_one("curate", {"pairs": pairs}, sets or [], store, preset, "auto", deadline, as_json, debug, out)


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
    run_one("fit-tokenizer", {"curated": curated}, sets or [], store, preset, device, deadline, as_json, debug)


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
    run_one(
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
    init_from: Annotated[
        str, typer.Option("--init-from", metavar="REF", help="Start from the weights of this model, and its shape.")
    ] = "",
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Learn one batch by heart first (30 updates); stop if that fails.")
    ] = False,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "quickstart",
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the **transformer** on tokens; with `--init-from` fine-tune a model on them.

    `--set train.objective=text` trains a GPT on the captions alone.
    """
    refs = {"tokens": tokens}
    if preflight:
        sets = ["train.preflight=30", *(sets or [])]
    if init_from:
        from flows import commands

        refs["model"] = init_from
        sets = [*commands.model_sets(settings_of(store, device, deadline), init_from), *(sets or [])]
    run_one("fit", refs, sets or [], store, preset, device, deadline, as_json, debug)


@app.command("fit-generator")
def fit_generator(
    curated: Ref,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    preset: Preset = "vae",
    device: Device = "auto",
    deadline: Deadline = 0.0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a **generator without prompts** on curated pairs: a Gaussian VAE, or with `--preset gan` a DCGAN."""
    run_one("fit-generator", {"curated": curated}, sets or [], store, preset, device, deadline, as_json, debug)


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="Prompts to draw.")] = None,
    prompts_uri: Annotated[
        str, typer.Option("--prompts", metavar="URI", help="File of prompts: txt, jsonl, csv, tsv or parquet.")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", metavar="REF", help="The model; a name is resolved once.")
    ] = "latest",
    own_captions: Annotated[
        int, typer.Option("--own-captions", min=0, help="So many captions of the model's own pairs, too.")
    ] = 0,
    n: Annotated[int, typer.Option("--n", min=1, help="Pictures per prompt.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Root seed.")] = 0,
    best_of: Annotated[
        int,
        typer.Option(
            "--best-of", min=0, help="Draw so many of one prompt and keep the best --n by p(prompt | picture)."
        ),
    ] = 0,
    clip: Annotated[
        str, typer.Option("--clip", metavar="FOLDER", help="With --best-of: rank by the CLIP model in this folder.")
    ] = "",
    explain: Annotated[
        bool, typer.Option("--explain", help="One prompt, and a sheet of word and surprise maps beside each picture.")
    ] = False,
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
    if not prompts and not prompts_uri and not own_captions:
        raise UsageError(
            'no prompt given; write one, e.g. dalle generate "a red heart", a file with --prompts URI, or --own-captions 8'
        )
    if clip and not best_of:
        raise UsageError("--clip ranks the pictures of --best-of; give --best-of 32, too")
    if best_of or explain:
        if len(prompts or []) != 1 or prompts_uri or own_captions or (best_of and explain):
            raise UsageError(
                "--best-of and --explain work on one prompt, and not together; give one of them and one prompt"
            )
        from flows import drawing

        ask = drawing.Ask(settings_of(store, device, deadline), model, out, n, seed, tuple(sets or ()))
        prompt = (prompts or [""])[0]
        emit(as_json, *(drawing.explained(ask, prompt) if explain else drawing.best_of(ask, prompt, best_of, clip)))
        return
    assignments = [
        f"generate.prompts={json.dumps(prompts or [])}",
        f"generate.prompts_uri={prompts_uri}",
        f"generate.own_captions={own_captions}",
        f"generate.n={n}",
        f"generate.seed={seed}",
    ]
    run_one(
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
