"""A model artifact ready to draw: prompts in, pictures out."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from dalle_model.captions import CaptionTokenizer
from dalle_model.config import SamplerChange, SamplerConfig
from dalle_model.dalle import Dalle, dalle_from_bytes
from dalle_model.decoder import Decoder, tile_rows
from dalle_model.identity import model_identity
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw_with, picture_key
from dalle_model.tokenizers.base import ImageTokenizer, decode_alone
from tasks import unprompted
from tasks.artifacts import Manifest
from tasks.devices import free_memory_bytes, preflight
from tasks.encode_images import load_tokenizer
from tasks.job import Job


@dataclass(frozen=True)
class Painter:
    """Everything that turns a prompt into a picture.

    fingerprint: of the model artifact, told with each picture. identity: ``model_identity``, which keys the noise.
    """

    model: Dalle
    tokenizer: ImageTokenizer
    words: CaptionTokenizer
    sampler: SamplerConfig
    runtime: Runtime
    fingerprint: str
    identity: str
    reads_prompts: bool = True
    say: Callable[[str], None] = lambda text: None  # told what takes long before the first picture

    @property
    def max_text_tokens(self) -> int:
        """Tokens of a prompt that the model reads."""
        return self.model.shape.max_text_tokens

    def request(
        self, prompt: str, seed: int, index: int, *, negative: str = "", given: tuple[int, ...] = ()
    ) -> Request:
        """One picture to draw; a prompt longer than the model's text is cut, as captions were in training.

        negative: what guidance leads away from; part of the picture's key. given: image tokens of its beginning.
        """
        ids, away = (tuple(self.words.encode(text)[: self.max_text_tokens]) for text in (prompt, negative))
        key = picture_key(self.identity, f"{prompt}\0{negative}" if negative else prompt, seed, index)
        return Request(ids, key, given, away)

    @cached_property
    def decoder(self) -> Decoder:
        """The packed model; its rows fit the memory. Raises DeviceError when those of a single picture do not."""
        shape, config = self.model.shape, self.model.config
        positions = shape.max_text_tokens + shape.num_image_tokens
        size = 4 if self.runtime.device.type == "cpu" else self.runtime.dtype.itemsize
        row = 2 * positions * config.dim * config.depth * size
        rows = tile_rows(self.runtime.device)
        least = 1 if self.sampler.guidance == 1.0 else 2
        # half of the memory: weights and logits need room, too
        while rows > least and rows * row > free_memory_bytes(self.runtime) // 2:
            rows //= 2
        preflight(self.runtime, rows * row, f"the keys and values of {rows} rows")
        return Decoder(self.model, self.runtime, self.sampler.weights, rows, say=self.say)

    def tokens(
        self, requests: Sequence[Request], batch_size: int, progress: Callable[[int, int], None] | None = None
    ) -> npt.NDArray[np.uint16]:
        """Image tokens, uint16 [n, N]. batch_size: pictures at once, at most the decoder's rows; 0 = as many as fit."""
        return draw_with(self.decoder, requests, self.sampler, batch_size, progress)

    def pictures(self, tokens: npt.NDArray[np.uint16]) -> torch.Tensor:
        """uint16 [n, N] -> float32 [n, 3, H, W] in [0, 1] on the CPU; a picture does not depend on its neighbours."""
        return decode_alone(self.tokenizer, tokens, self.runtime.device)


def load_painter(job: Job, manifest: Manifest, sampler: SamplerChange, seed: int, drawn_with: str = "") -> Painter:
    """The painter of a model artifact; ``sampler``: what to change of the one stored with it.

    drawn_with: kind of weights (full, int8), which the painter's sampler then records; empty = as the sampler says.
    """
    if manifest.step == unprompted.STEP:
        given = [f"sampler.{name}" for name in sampler.model_dump(exclude_none=True)] + ["weights"] * bool(drawn_with)
        if given:
            job.log(f"model {manifest.fingerprint[:12]} draws no tokens, so {', '.join(given)} have no effect on it")
        return cast(Painter, unprompted.load_unprompted(job, manifest, seed))  # the same calls
    weights, config = (job.read(manifest.object_of(role)) for role in ("weights", "config"))
    stored = SamplerConfig.model_validate(json.loads(job.read(manifest.object_of("sampler"))))
    chosen, model = sampler.over(stored), dalle_from_bytes(weights, config)
    return Painter(
        model=model,
        tokenizer=load_tokenizer(job, manifest, "tokenizer."),
        words=CaptionTokenizer.from_json(job.read(manifest.object_of("bpe"))),
        sampler=chosen.model_copy(update={"weights": drawn_with or chosen.weights}),
        runtime=replace(job.runtime, seed=seed),
        fingerprint=manifest.fingerprint,
        identity=model_identity(model),
        say=job.log,
    )
