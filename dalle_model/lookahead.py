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

import torch
from torch import Tensor

from dalle_model.config import SamplerConfig
from dalle_model.decoder import Decoder
from dalle_model.filters import best, filter_logits, guide, pick

_MAX_WIDTH = 16
_NEWS = 0.05  # weight of one more guess in the share of right ones

Noise = Callable[[int, int], Tensor | None]
"""(first place, number of places) -> float32 [number, V], or None at temperature 0."""


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
    """One picture at work. ``tokens``: int64 [N], decided up to a place; what stands after it are guesses."""

    def __init__(self, decoder: Decoder, sampler: SamplerConfig, tokens: Tensor, noise: Noise) -> None:
        self.decoder, self.sampler, self.tokens, self.noise = decoder, sampler, tokens, noise
        self.pace = Pace({size: decoder.costs_s[size] for size in decoder.sizes})
        self.passes = 0

    def decide(self, logits: Tensor, place: int, stop: int) -> Tensor:
        """Decide the tokens from ``place`` up to, not including, ``stop``.

        logits: float32 [P, V] of ``place``; P is 1, or 2 under guidance. Returns those of ``stop`` [P, V], or of the last
        place where the picture ends.
        """
        last = min(stop, len(self.tokens) - 1)
        self.tokens[place] = self._drawn(logits.unsqueeze(1), place)[0]
        self._guess(logits, place + 1)
        while place < last:
            width = min(self.pace.width(len(logits)), last - place)
            found = self._read(place, width, len(logits))
            drawn = self._drawn(found, place + 1)
            same = (drawn[:-1] == self.tokens[place + 1 : place + width]).tolist()
            right = same.index(False) if False in same else len(same)
            self.pace.saw(right, right < len(same))
            # drawn after a wrong guess, a token is no more than a guess, but a better one than that before it
            self.tokens[place + 1 : place + 1 + width] = drawn
            self._guess(found[:, -1], place + 1 + width)
            place, logits = place + 1 + right, found[:, right]
        return logits

    def _read(self, place: int, width: int, rows: int) -> Tensor:
        """Feed the tokens at place.. -> logits [P, W, V] of the places after each."""
        self.passes += 1
        places = torch.arange(place, place + width).repeat(rows)
        fed = self.tokens[place : place + width].repeat(rows)
        logits = self.decoder.advance(fed, torch.arange(rows).repeat_interleave(width), places)
        return logits.view(rows, width, -1)

    def _shown(self, logits: Tensor) -> Tensor:
        """[P, W, V] -> [W, V]."""
        return guide(logits.flatten(0, 1), self.sampler.guidance) if len(logits) == 2 else logits[0]

    def _drawn(self, logits: Tensor, first: int) -> Tensor:
        """Logits [P, W, V] of places first.. -> tokens int64 [W]."""
        return pick(self._shown(logits), self.noise(first, logits.shape[1]), self.sampler)

    def _guess(self, logits: Tensor, first: int) -> None:
        """Guesses for a few places from ``first`` on, from logits [P, V] of a place before."""
        count = min(_MAX_WIDTH, len(self.tokens) - first)
        if count < 1:
            return
        noise = self.noise(first, count)
        shown = self._shown(logits.unsqueeze(1))
        if noise is not None:
            shown = filter_logits(shown, self.sampler) + noise
        self.tokens[first : first + count] = best(shown)
