"""Several tokens of one picture from one pass: guess them, read all guesses at once, keep those that come out as guessed.

A token is a deterministic function of the tokens before it, because the noise of a place belongs to the picture. So
decoding solves a triangular system, and Jacobi's iteration solves it in parallel (Song et al. 2021, "Accelerating
feedforward computation via parallel nonlinear equation solving"; for pictures Teng et al. 2024, "Accelerating
auto-regressive text-to-image generation with training-free speculative Jacobi decoding", who accept by chance). Here a
guess is kept when it is the token that is drawn, so that the picture is the same to the bit; every pass decides at
least one. A guess is drawn with its place's own noise from the newest logits at or before it.

Axes: P rows of the cache (caption, and what guidance leads away from), W places of a pass, V image codes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dalle_model.config import SamplerConfig
from dalle_model.decoder import Decoder
from dalle_model.filters import best, filter_logits, guide, pick

_MAX_WIDTH = 16
_NEWS = 0.05  # weight of one more guess in the share of right ones
_PROBE = 2  # passes of one place from one guess to the next, which only tells whether guessing would pay again

Noise = Callable[[int, int, int], Tensor | None]
"""(picture, first place, number of places) -> float32 [number, V], or None at temperature 0."""


@dataclass
class Pace:
    """How many places a pass reads. A bad choice costs time and changes no picture.

    costs_s: seconds of a step by its number of queries. right: running share of guesses that were right.
    """

    costs_s: dict[int, float]
    right: float = 0.7

    def __post_init__(self) -> None:
        # a step costs at most what a larger one does; what was measured beyond that, other work on the machine took
        self.costs_s = {size: min(c for s, c in self.costs_s.items() if s >= size) for size in self.costs_s}

    def width(self, rows: int) -> int:
        """The most tokens per second, if every guess is right with the present chance, independently."""
        costs = {max(1, size // rows): cost for size, cost in sorted(self.costs_s.items(), reverse=True)}
        chance = min(self.right, 0.99)
        gains = {w: (1 - chance**w) / (1 - chance) / cost for w, cost in costs.items() if w <= _MAX_WIDTH}
        return max(gains, key=lambda w: gains[w], default=1)

    def saw(self, right: int, wrong: bool) -> None:
        """That many guesses in a row were right, and whether a wrong one came after them."""
        self.right = 1 - (1 - self.right) * (1 - _NEWS) ** right
        if wrong:
            self.right *= 1 - _NEWS


class Lookahead:
    """Pictures at work, each at its own place. ``tokens``: int64 [n, N], decided up to a place; after it stand guesses.

    ``noise`` of (picture, first place, number of places); rows i and n + i of the cache are picture i's.
    """

    def __init__(self, decoder: Decoder, sampler: SamplerConfig, tokens: Tensor, noise: Noise) -> None:
        self.decoder, self.sampler, self.tokens, self.noise = decoder, sampler, tokens, noise
        self.pace = Pace({size: decoder.costs_s[size] for size in decoder.sizes})
        self.passes = 0
        self.probed = [-1] * len(tokens)  # the place of each picture whose guess is no more than looked at

    def decide(self, logits: Tensor, place: int, stop: int) -> Tensor:
        """Decide the tokens from ``place`` up to, not including, ``stop``.

        logits: float32 [P * n, V] of ``place``; P is 1, or 2 under guidance. Returns those of ``stop`` [P * n, V], or of
        the last place where the picture ends.
        """
        n, last = len(self.tokens), min(stop, self.tokens.shape[1] - 1)
        logits = logits.clone().view(-1, n, logits.shape[1])
        places, width = [place] * n, self.pace.width(len(logits) * n)
        for i in range(n):
            self.tokens[i, place] = self._drawn(logits[:, i : i + 1], i, place)[0]
            self._guess(logits[:, i], i, place + 1, width)
        while at_work := [i for i in range(n) if places[i] < last]:
            width = self.pace.width(len(logits) * len(at_work))
            widths = [min(width, last - places[i]) for i in at_work]
            found = self._read(at_work, [places[i] for i in at_work], widths, len(logits), n)
            for i, seen in zip(at_work, found, strict=True):
                right = self._take(i, places[i], seen, width)
                places[i] += 1 + right
                logits[:, i] = seen[:, right]
        return logits.flatten(0, 1)

    def _take(self, i: int, place: int, found: Tensor, width: int) -> int:
        """Draw what follows the places that were read, [P, W, V]: the number of guesses that were right."""
        read, right, drawn = found.shape[1], 0, self._drawn(found, i, place + 1)
        if read > 1:
            same = (drawn[:-1] == self.tokens[i, place + 1 : place + read]).tolist()
            right = same.index(False) if False in same else len(same)
            self.pace.saw(right, right < len(same))
        elif self.probed[i] == place + 1:
            hit = bool(drawn[0] == self.tokens[i, place + 1])
            self.pace.saw(int(hit), not hit)
        # drawn after a wrong guess, a token is no more than a guess, but a better one than that before it
        self.tokens[i, place + 1 : place + 1 + read] = drawn
        self._guess(found[:, -1], i, place + 1 + read, width)
        return right

    def _read(self, at_work: list[int], places: list[int], widths: list[int], sides: int, n: int) -> list[Tensor]:
        """Feed each picture's tokens at its next places -> logits [P, W, V] of the places after each."""
        self.passes += 1
        where = np.concatenate([np.arange(p, p + w) for p, w in zip(places, widths, strict=True)])
        rows = np.repeat(at_work, widths)
        fed = self.tokens.numpy()[rows, where]
        rows = np.concatenate([rows + side * n for side in range(sides)])
        queries = (torch.from_numpy(part) for part in (np.tile(fed, sides), rows, np.tile(where, sides)))
        logits = self.decoder.advance(*queries)
        return list(torch.split(logits.view(sides, len(where), -1), widths, dim=1))

    def _shown(self, logits: Tensor) -> Tensor:
        """[P, W, V] -> [W, V]."""
        return guide(logits.flatten(0, 1), self.sampler.guidance) if len(logits) == 2 else logits[0]

    def _drawn(self, logits: Tensor, i: int, first: int) -> Tensor:
        """Logits [P, W, V] of places first.. -> tokens int64 [W]."""
        return pick(self._shown(logits), self.noise(i, first, logits.shape[1]), self.sampler)

    def _guess(self, logits: Tensor, i: int, first: int, width: int) -> None:
        """Guesses for what the next two passes read from ``first`` on, from logits [P, V] of a place before.

        Where passes read one place, a single one now and then: a picture may begin where nothing can be guessed.
        """
        count = min(2 * width, _MAX_WIDTH, self.tokens.shape[1] - first)
        if width == 1:
            count = min(count, 1 if self.passes % _PROBE == 0 else 0)
            self.probed[i] = first
        if count < 1:
            self.probed[i] = -1
            return
        noise = self.noise(i, first, count)
        shown = self._shown(logits.unsqueeze(1))
        if noise is not None:
            shown = filter_logits(shown, self.sampler) + noise
        self.tokens[i, first : first + count] = best(shown)
