"""What an evaluation draws: groups of captions with their true pictures, what the model made of them, and repeats."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from dalle_model.features import Features
from dalle_model.images import to_float, to_uint8
from dalle_model.metrics import halved, recognised
from dalle_model.sheets import Section, sectioned_sheet
from tasks.drawing import Painter
from tasks.fit_tokenizer import reconstruct
from tasks.job import Job
from tasks.pictures import PictureSet, spread

UInt8 = npt.NDArray[np.uint8]
_REPEATED_CAPTIONS = 8
_PIECE = 512
_REPEATS = 4  # drawings of each of them, for the variety among drawings of one caption


class Stopwatch:
    """Seconds spent inside networks, and since it was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.networks_s = 0.0

    @contextmanager
    def networks(self) -> Iterator[None]:
        """Counts its block; blocks do not nest."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.networks_s += time.monotonic() - started

    def facts(self) -> dict[str, float]:
        """For the manifest: where the time went."""
        total = time.monotonic() - self._started
        return {"networks_s": round(self.networks_s, 3), "elsewhere_s": round(total - self.networks_s, 3)}


class Timed:
    """Features whose time counts as that of a network."""

    def __init__(self, features: Features, watch: Stopwatch) -> None:
        self.name, self.digest = features.name, features.digest
        self._features, self._watch = features, watch

    def of(self, images: torch.Tensor) -> npt.NDArray[np.float64]:
        """As the features."""
        with self._watch.networks():
            return self._features.of(images)


@dataclass(frozen=True)
class Drawn:
    """One group of captions with what was drawn for them.

    ids: of the pairs [n], told apart where a pair is there twice. truth, made, rebuilt: uint8 [n, H, W, 3]; tokens: uint16 [n, N], of what was made.
    hit, rebuilt_hit: bool [n], whether the nearest reference picture is the caption's own.
    distance: float [n], mean squared error to the caption's own picture at full resolution.
    """

    ids: list[str]
    captions: list[str]
    truth: UInt8
    made: UInt8
    rebuilt: UInt8
    tokens: npt.NDArray[np.uint16]
    true_tokens: npt.NDArray[np.int64]
    hit: npt.NDArray[np.bool_]
    rebuilt_hit: npt.NDArray[np.bool_]
    distance: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Repeats:
    """Several drawings of some captions: uint8 [r, H, W, 3], and the number of each one's caption, int64 [r]."""

    made: UInt8
    groups: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Easel:
    """What drawing needs beside the captions."""

    job: Job
    painter: Painter
    watch: Stopwatch
    total: int  # pictures to be drawn in all, for the progress

    def draw(
        self, pictures: PictureSet, chosen: npt.NDArray[np.int64], reference: "Reference", offset: int, done: int = 0
    ) -> Drawn:
        """Draw the chosen captions and find the nearest of ``reference``; ``offset``: row there of the first own picture.

        A caption that is there several times is drawn under as many indices, else all would be one picture.
        """
        rows = pictures.rows.take(pa.array(chosen))
        captions = rows["caption"].to_pylist()
        truth = np.asarray(pictures.images[chosen])
        prompts = list(zip(captions, _times_before(captions), strict=True))
        tokens, made = self._made(prompts, lambda n: self._say(done + n))
        with self.watch.networks():
            true_tokens, rebuilt = reconstruct(self.painter.tokenizer, truth, self.painter.runtime)
        own = torch.from_numpy(chosen + offset)
        error = (made - to_float(truth)).square().flatten(1).mean(1)
        return Drawn(
            ids=_distinct(rows["id"].to_pylist()),
            captions=captions,
            truth=truth,
            made=to_uint8(made),
            rebuilt=to_uint8(rebuilt),
            tokens=tokens,
            true_tokens=true_tokens.numpy(),
            hit=reference.recognised(made, own),
            rebuilt_hit=reference.recognised(rebuilt, own),
            distance=error.double().numpy(),
        )

    def repeat(self, group: Drawn) -> Repeats:
        """Draw some captions again under other indices; the first drawing of each is there already."""
        chosen = spread(len(group.captions), _REPEATED_CAPTIONS)
        before = _times_before(group.captions)
        pairs = [(caption, before[caption] + more) for caption in chosen for more in range(1, _REPEATS)]
        _, again = self._made([(group.captions[caption], index) for caption, index in pairs], lambda _: None)
        groups = np.concatenate([chosen, np.array([caption for caption, _ in pairs], np.int64)])
        return Repeats(np.concatenate([group.made[chosen], to_uint8(again)]), groups)

    def _made(
        self, prompts: Sequence[tuple[str, int]], said: Callable[[int], None]
    ) -> tuple[npt.NDArray[np.uint16], torch.Tensor]:
        requests = [self.painter.request(caption, self.job.config.seed, index) for caption, index in prompts]
        with self.watch.networks():
            tokens = self.painter.tokens(requests, self.job.config.batch_size, lambda n, _: said(n))
            return tokens, self.painter.pictures(tokens)

    def _say(self, done: int) -> None:
        self.job.progress(done, self.total, "pictures")


class Reference:
    """The pictures among which that nearest to a drawing is sought, made small once."""

    def __init__(self, *sets: PictureSet) -> None:
        """In pieces: as floats at full size they need eight times their memory."""
        pieces = [each.images[i : i + _PIECE] for each in sets for i in range(0, len(each.images), _PIECE)]
        captions = [caption for each in sets for caption in each.rows["caption"].to_pylist()]
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        self._rows = torch.cat([halved(to_float(np.asarray(piece))) for piece in pieces])
        self._kinds = torch.tensor([numbers[caption] for caption in captions])

    def recognised(self, pictures: torch.Tensor, own: torch.Tensor) -> npt.NDArray[np.bool_]:
        """Float [n, 3, H, W] and the row of each one's own picture -> whether the nearest is of its caption, bool [n]."""
        found: npt.NDArray[np.bool_] = recognised(halved(pictures), self._rows, own, self._kinds).numpy()
        return found


def _times_before(captions: Sequence[str]) -> list[int]:
    """How often each caption stands before its place."""
    seen: Counter[str] = Counter()
    out = []
    for caption in captions:
        out.append(seen[caption])
        seen[caption] += 1
    return out


def _distinct(ids: list[str]) -> list[str]:
    """The second of a pair that is there twice is told apart by its number."""
    return [f"{each}#{before + 1}" if before else each for each, before in zip(ids, _times_before(ids), strict=True)]


def sheet(train: Drawn, held: Drawn | None) -> bytes:
    """The real picture above what was drawn, for training captions and in a row of their own for held-out ones."""
    sections = [
        Section("Training captions: the real picture above, the drawn one below", _towers(train), train.captions)
    ]
    if held is not None:
        sections.append(
            Section(
                "Held-out compositions, never trained on: the real picture above, the drawn one below",
                _towers(held),
                held.captions,
            )
        )
    return sectioned_sheet(sections, columns=16, tile_px=(64, 130), max_bytes=400_000)


def _towers(group: Drawn) -> list[UInt8]:
    line = np.full((2, group.truth.shape[2], 3), 255, np.uint8)
    return [np.concatenate([truth, line, made], axis=0) for truth, made in zip(group.truth, group.made, strict=True)]
