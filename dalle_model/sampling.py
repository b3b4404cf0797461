"""Drawing image tokens: one prefill per prompt, a preallocated cache, and noise that belongs to the picture.

A picture is a pure function of (weights, prompt, key, sampler): the decoder computes a row alike in any company, and
the noise comes from a counter generator keyed by the picture, so neither the size of a batch, nor its order, nor the
number of workers, nor a restart matter.

All pictures have the same number of tokens, so those that start at the same place end together: a wave of pictures
takes the rows of the decoder, and the next wave of the list takes them over with the prompts they already hold.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dalle_model.config import SamplerConfig
from dalle_model.dalle import Dalle, DalleShape
from dalle_model.decoder import Decoder
from dalle_model.errors import DataError, UsageError
from dalle_model.filters import guide, pick
from dalle_model.lookahead import Lookahead
from dalle_model.runtime import Runtime

_NOISE_BLOCK = 8  # image positions whose noise is made at once
MOST_AHEAD = 4
"""Pictures that are drawn several tokens a pass; more fill the decoder's rows by themselves."""


@dataclass(frozen=True)
class Request:
    """One picture to draw.

    prompt_ids: caption tokens, not padded. key: names its noise; see ``picture_key``.
    given: image tokens of the beginning of the picture, in raster order, that are kept (empty: draw all).
    negative_ids: what guidance leads away from, in place of no caption.
    """

    prompt_ids: tuple[int, ...]
    key: str
    given: tuple[int, ...] = ()
    negative_ids: tuple[int, ...] = ()


def picture_key(model: str, prompt: str, seed: int, index: int) -> str:
    """The identity of one picture: the same four values draw the same picture anywhere. model: its ``model_identity``."""
    return hashlib.sha256(f"{model}\0{prompt}\0{seed}\0{index}".encode()).hexdigest()


def picture_noise(key: str, vocab: int, positions: int, first: int = 0) -> NDArray[np.float32]:
    """Standard Gumbel noise of one picture from position ``first``, float32 [positions, vocab].

    A pure function of the key and the position: raw bits of a Philox counter generator, whose stream never changes.
    """
    counters = -(-vocab // 8)  # of a position; a counter gives 256 bits, a token takes 32
    name = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    raw = np.random.Philox(key=name, counter=first * counters).random_raw(positions * counters * 4).view(np.uint32)
    # 23 bits and a half: with 24 the largest value would round to 1, whose noise is infinite
    noise = (raw.reshape(positions, -1)[:, :vocab] >> np.uint32(9)).astype(np.float32)
    noise += np.float32(0.5)
    noise *= np.float32(2**-23)
    for _ in range(2):
        np.log(noise, out=noise)
        np.negative(noise, out=noise)
    return noise


def draw(
    model: Dalle,
    requests: Sequence[Request],
    sampler: SamplerConfig,
    runtime: Runtime,
    batch_size: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint16]:
    """Image tokens of all requests, uint16 [n, N], in their order. See ``draw_with``, which spares packing the weights."""
    was_training = model.training
    decoder = Decoder(model.eval(), runtime, sampler.weights)
    try:
        return draw_with(decoder, requests, sampler, batch_size, progress)
    finally:
        model.train(was_training)


@torch.inference_mode()
def draw_with(
    decoder: Decoder,
    requests: Sequence[Request],
    sampler: SamplerConfig,
    batch_size: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint16]:
    """Image tokens of all requests, uint16 [n, N], in their order.

    batch_size: at most so many pictures at once, 0 = as many as the decoder has rows; without effect on the pictures.
    progress: called with (done, total). Raises DataError when a prompt is longer than the model's text or more of a
    picture is given than it has, UsageError for a negative prompt without guidance, guidance that never acts, or with a decoder of one row.
    """
    decoder.model.require("text_to_image")
    shape = decoder.model.shape
    check_sampler(sampler, shape)
    _check(requests, sampler, shape)
    rows_each = 1 if sampler.guidance == 1.0 else 2
    if decoder.rows < rows_each:
        raise UsageError(
            f"guidance {sampler.guidance:g} reads two rows for a picture, and this decoder has {decoder.rows}; "
            "make it with more, or set guidance to 1"
        )
    at_once = decoder.rows // rows_each
    at_once = min(at_once, batch_size) if batch_size else at_once
    out = np.zeros((len(requests), shape.num_image_tokens), dtype=np.uint16)
    done = 0
    for wave in _waves(requests, at_once):
        at_work = _Wave(decoder, [requests[i] for i in wave], sampler)
        ahead = len(wave) <= MOST_AHEAD and decoder.looks_ahead
        out[wave] = at_work.draw_ahead() if ahead else at_work.draw()
        done += len(wave)
        if progress:
            progress(done, len(requests))
    return out


def check_sampler(sampler: SamplerConfig, shape: DalleShape) -> None:
    """UsageError for guidance that begins behind the last image token: every picture would be drawn without it."""
    if sampler.guidance != 1.0 and sampler.guidance_from >= shape.num_image_tokens:
        raise UsageError(
            f"guidance_from {sampler.guidance_from} is behind the {shape.num_image_tokens} image tokens of a picture, so "
            f"guidance {sampler.guidance:g} would never act; set sampler.guidance_from below {shape.num_image_tokens}"
        )


def _check(requests: Sequence[Request], sampler: SamplerConfig, shape: DalleShape) -> None:
    longest = max((max(len(r.prompt_ids), len(r.negative_ids)) for r in requests), default=0)
    if longest > shape.max_text_tokens:
        raise DataError(
            f"a prompt has {longest} tokens, the model reads {shape.max_text_tokens}; shorten it or cut its tokens"
        )
    given = max((len(r.given) for r in requests), default=0)
    if given >= shape.num_image_tokens:
        raise DataError(
            f"{given} image tokens are given, but a picture has {shape.num_image_tokens}; leave at least one to draw"
        )
    if sampler.guidance == 1.0 and any(r.negative_ids for r in requests):
        raise UsageError("a negative prompt works through guidance, which is 1 (off); set sampler.guidance, e.g. 2")


def _waves(requests: Sequence[Request], at_once: int) -> Iterator[list[int]]:
    """Groups of requests that start at the same place, neighbours by prompt, so that a prompt is read once."""
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].given), requests[i].prompt_ids, i))
    wave: list[int] = []
    for i in order:
        if wave and (len(wave) == at_once or len(requests[wave[0]].given) != len(requests[i].given)):
            yield wave
            wave = []
        wave.append(i)
    if wave:
        yield wave


class _Wave:
    """Pictures drawn in lock-step: rows 0..n-1 read the captions, rows n..2n-1 what guidance leads away from."""

    def __init__(self, decoder: Decoder, requests: list[Request], sampler: SamplerConfig) -> None:
        self.decoder, self.requests, self.sampler = decoder, requests, sampler
        shape = decoder.model.shape
        self.start, self.end = len(requests[0].given), shape.num_image_tokens
        size = (len(requests), self.end)
        self.tokens = torch.zeros(size, dtype=torch.long, device=decoder.runtime.device)
        if self.start:
            self.tokens[:, : self.start] = torch.tensor([r.given for r in requests])
        self.vocab = shape.image_vocab
        self.block = torch.empty(0)
        self.noises, self.made = (
            torch.empty(0),
            [0] * len(requests),
        )  # of pictures drawn ahead, and places that have theirs
        self.passes = 0
        on = sampler.guidance != 1.0
        self.guided_from = max(self.start, sampler.guidance_from) if on else self.end
        self.guided_to = (sampler.guidance_to or self.end) if on else 0

    def draw(self) -> NDArray[np.uint16]:
        """uint16 [n, N]."""
        n = len(self.requests)
        logits = self.decoder.read([(r.prompt_ids, r.given) for r in self.requests])
        for place in range(self.start, self.end):
            guided = self.guided_from <= place < self.guided_to
            if guided and place == self.guided_from:  # the other rows begin here, with all that was drawn so far
                logits = torch.cat([logits[:n], self._read_negatives(place)])
            shown = guide(logits[: 2 * n], self.sampler.guidance) if guided else logits[:n]
            self.tokens[:, place] = pick(shown, self._noise(place), self.sampler)
            if place + 1 < self.end:
                fed = self.tokens[:, place]
                paired = self.guided_from <= place + 1 < self.guided_to and guided
                logits = self.decoder.step(fed.repeat(2) if paired else fed, place)
        drawn: NDArray[np.uint16] = self.tokens.cpu().numpy().astype(np.uint16)
        return drawn

    def draw_ahead(self) -> NDArray[np.uint16]:
        """The same uint16 [n, N], several tokens of each picture a pass; see ``lookahead``. For a few pictures."""
        n = len(self.requests)
        logits = self.decoder.read([(r.prompt_ids, r.given) for r in self.requests])
        ahead = Lookahead(self.decoder, self.sampler, self.tokens, self._noise_of)
        place = self.start
        while place < self.end:
            guided = self.guided_from <= place < self.guided_to
            if guided and place == self.guided_from:
                logits = torch.cat([logits[:n], self._read_negatives(place)])
            stop = self.guided_to if guided else self.guided_from if place < self.guided_from else self.end
            stop = min(stop, self.end)
            logits = ahead.decide(logits if guided else logits[:n], place, stop)
            place, self.passes = stop, ahead.passes
        drawn: NDArray[np.uint16] = self.tokens.numpy().astype(np.uint16)
        return drawn

    def _read_negatives(self, place: int) -> Tensor:
        so_far = [tuple(row) for row in self.tokens[:, :place].tolist()]
        prefixes = [(r.negative_ids, given) for r, given in zip(self.requests, so_far, strict=True)]
        return self.decoder.read(prefixes, first_row=len(self.requests))

    def _noise_of(self, picture: int, first: int, count: int) -> Tensor | None:
        """Noise of places first.. of one picture, made in blocks as it is asked for."""
        if self.sampler.temperature == 0.0:
            return None
        if not len(self.noises):
            self.noises = torch.empty(len(self.requests), self.end - self.start, self.vocab)
        noises, made, end = self.noises[picture], self.made[picture], first + count - self.start
        if end > made:
            more = min(-(-(end - made) // _NOISE_BLOCK) * _NOISE_BLOCK, len(noises) - made)
            key = self.requests[picture].key
            noises[made : made + more] = torch.from_numpy(picture_noise(key, self.vocab, more, self.start + made))
            self.made[picture] += more
        return noises[first - self.start : end]

    def _noise(self, place: int) -> Tensor | None:
        if self.sampler.temperature == 0.0:
            return None
        at = (place - self.start) % _NOISE_BLOCK
        if at == 0:
            count = min(_NOISE_BLOCK, self.end - place)
            block = np.stack([picture_noise(r.key, self.vocab, count, place) for r in self.requests])
            self.block = torch.from_numpy(block).to(self.decoder.runtime.device)
        return self.block[:, at]
