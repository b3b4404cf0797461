"""A generator without prompts in the place of a painter, so that generating from it is the same step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dalle_model.config import SamplerConfig
from dalle_model.errors import DataError
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, picture_key
from dalle_model.unprompted import Generator, draw_pictures, generator_from_bytes, noise_of
from tasks.artifacts import Manifest
from tasks.job import Job

STEP = "fit-generator"


class NoWords:
    """Stands for the caption tokenizer of a model that has none: every prompt is read as empty."""

    def encode(self, text: str, *_: Any) -> list[int]:
        """No token."""
        return []


@dataclass(frozen=True)
class UnpromptedPainter:
    """The calls of ``drawing.Painter``. A prompt only names the noise: other prompts give other pictures, of anything."""

    network: Generator
    runtime: Runtime
    fingerprint: str
    sampler: SamplerConfig
    words: NoWords
    max_text_tokens: int = 0
    reads_prompts: bool = False

    @property
    def image_px(self) -> int:
        """Side of the pictures, px."""
        return self.network.config.image_px

    @property
    def model(self) -> Any:
        """There is no transformer; what needs one says so."""
        raise self._lacks("transformer")

    @property
    def tokenizer(self) -> Any:
        """There is no image tokenizer; what needs one says so."""
        raise self._lacks("image tokenizer")

    def _lacks(self, part: str) -> DataError:
        return DataError(
            f"model {self.fingerprint[:12]} is a {self.network.config.kind} and has no {part}: it can generate and be evaluated, no more; take a model of stage fit"
        )

    def request(self, prompt: str, seed: int, index: int, *_: Any, **__: Any) -> Request:
        """One picture to draw."""
        return Request((), picture_key(self.fingerprint, prompt, seed, index))

    def tokens(
        self, requests: Sequence[Request], batch_size: int, progress: Callable[[int, int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """What a picture is made from: noise float32 [n, latent_dim]. No image token exists."""
        return noise_of([r.key for r in requests], self.network.config.latent_dim).numpy()

    def pictures(self, tokens: npt.NDArray[np.float32]) -> torch.Tensor:
        """Noise -> float32 [n, 3, H, W] in [0, 1] on the CPU; each picture is a function of its noise alone."""
        return draw_pictures(self.network, torch.from_numpy(tokens), self.runtime)


def load_unprompted(job: Job, manifest: Manifest, seed: int) -> UnpromptedPainter:
    """The painter of a model artifact of stage fit-generator."""
    weights, config = (job.read(manifest.object_of(role)) for role in ("weights", "config"))
    runtime = replace(job.runtime, seed=seed)
    return UnpromptedPainter(
        generator_from_bytes(weights, config), runtime, manifest.fingerprint, SamplerConfig(), NoWords()
    )
