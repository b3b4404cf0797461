"""Commands for one picture at a time: finish it, vary it, describe it, check it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_app import DEFAULT_STORE, Debug, Device, Json, Out, Sets, Store, app, emit, settings_of

if TYPE_CHECKING:
    from flows.drawing import Ask

Picture = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture file; it is cropped to a square and scaled.")]
Model = Annotated[str, typer.Option("--model", metavar="REF", help="The model; a name is resolved once.")]
Number = Annotated[int, typer.Option("--n", min=1, max=1000, help="How many.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Root seed.")]


def _ask(store: str, device: str, model: str, out: Path, n: int, seed: int, sets: list[str] | None) -> "Ask":
    from flows.drawing import Ask

    return Ask(settings_of(store, device), model, out, n, seed, tuple(sets or ()))


@app.command()
def complete(
    image: Picture,
    prompt: Annotated[str, typer.Argument(help="What the whole picture shows.")],
    keep: Annotated[
        float, typer.Option("--keep", min=0, max=1, help="Share of the picture that stays, from the top.")
    ] = 0.5,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask", help="Picture, white where drawn anew, down to the lower right corner; instead of --keep."
        ),
    ] = None,
    model: Model = "latest",
    n: Number = 4,
    seed: Seed = 0,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    out: Out = Path("outputs/complete"),
    device: Device = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """**Finish** a picture whose top is given."""
    from flows import drawing

    emit(as_json, *drawing.complete(_ask(store, device, model, out, n, seed, sets), image, prompt, keep, mask))


@app.command()
def vary(
    image: Picture,
    prompt: Annotated[str, typer.Option("--prompt", help="What it shows; empty = the model's own words for it.")] = "",
    strength: Annotated[float, typer.Option("--strength", min=0, max=1, help="Share that is drawn anew.")] = 0.6,
    model: Model = "latest",
    n: Number = 4,
    seed: Seed = 0,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    out: Out = Path("outputs/vary"),
    device: Device = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw **variations** of a picture."""
    from flows import drawing

    emit(as_json, *drawing.vary(_ask(store, device, model, out, n, seed, sets), image, prompt, strength))


@app.command()
def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    model: Model = "latest",
    store: Store = DEFAULT_STORE,
    device: Device = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what pictures show, in the model's **own words** (train.image_first_share above 0)."""
    from flows import drawing

    emit(as_json, *drawing.caption(_ask(store, device, model, Path(), 1, 0, None), images))


@app.command("continue")
def continue_text(
    text: Annotated[str, typer.Argument(help="The beginning.")],
    language_model: Annotated[
        str,
        typer.Option(
            "--language-model", metavar="FOLDER|NAME", help="A causal language model; empty = the model itself."
        ),
    ] = "",
    expand: Annotated[bool, typer.Option("--expand", help="With --language-model: more detail for a prompt.")] = False,
    model: Model = "latest",
    n: Number = 4,
    seed: Seed = 0,
    store: Store = DEFAULT_STORE,
    device: Device = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Go on with a **text**: captions as the model knows them, or a prompt with more detail."""
    from flows import drawing

    emit(
        as_json, *drawing.continue_text(_ask(store, device, model, Path(), n, seed, None), text, language_model, expand)
    )


@app.command()
def loop(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    keep: Annotated[int, typer.Option("--keep", min=1, help="Pictures to keep.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="Times to draw --n pictures at most.")] = 3,
    threshold: Annotated[
        float,
        typer.Option("--threshold", max=0, help="Mean ln p per token of the prompt that a kept picture must reach."),
    ] = -1.0,
    model: Model = "latest",
    n: Number = 4,
    seed: Seed = 0,
    sets: Sets = None,
    store: Store = DEFAULT_STORE,
    out: Out = Path("outputs/loop"),
    device: Device = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw, **let the model say what it sees**, and keep, draw again or flag by how well both agree."""
    from flows import drawing

    emit(as_json, *drawing.loop(_ask(store, device, model, out, n, seed, sets), prompt, keep, rounds, threshold))
