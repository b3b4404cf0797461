"""A complete model in one folder: transformer, image tokenizer, caption tokenizer and sampler, for notebooks.

model = TextToImage.from_pretrained("folder")
pictures = model.draw(["red apple"], n=4)  # uint8 [1, 4, H, W, 3]
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dalle_model.captions import CaptionTokenizer
from dalle_model.config import SamplerConfig
from dalle_model.dalle import Dalle, dalle_from_bytes, dalle_to_bytes
from dalle_model.describing import describe
from dalle_model.errors import DataError, UsageError
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw, picture_key
from dalle_model.tokenizers.base import ImageTokenizer, to_bytes, to_unit
from dalle_model.tokenizers.registry import tokenizer_from_bytes, tokenizer_to_bytes

FILES = ("weights.safetensors", "config.json", "tokenizer.safetensors", "tokenizer.json", "bpe.json", "sampler.json")


@dataclass(frozen=True)
class TextToImage:
    """The four parts. ``bpe`` is the JSON of ``captions.train_bpe``; ``sampler`` is the model's default."""

    model: Dalle
    tokenizer: ImageTokenizer
    bpe: bytes
    sampler: SamplerConfig

    def __post_init__(self) -> None:
        words, shape = CaptionTokenizer.from_json(self.bpe), self.model.shape
        theirs = (words.vocab_size, self.tokenizer.vocab_size, self.tokenizer.grid)
        if theirs != (shape.text_vocab, shape.image_vocab, shape.grid):
            raise DataError(
                f"text vocabulary, image vocabulary and grid {theirs} of the tokenizers differ from the transformer's "
                f"{(shape.text_vocab, shape.image_vocab, shape.grid)}; take all parts from one model artifact"
            )

    def _parts(self) -> dict[str, bytes]:
        weights, config = dalle_to_bytes(self.model)
        tokenizer, described = tokenizer_to_bytes(self.tokenizer)
        sampler = json.dumps(self.sampler.model_dump(mode="json"), sort_keys=True).encode()
        return dict(zip(FILES, (weights, config, tokenizer, described, self.bpe, sampler), strict=True))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all parts but the sampler; pictures are keyed by it."""
        parts = self._parts()
        return hashlib.sha256(b"".join(hashlib.sha256(parts[name]).digest() for name in FILES[:-1])).hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the parts as safetensors and JSON into ``folder`` (created when absent)."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, data in self._parts().items():
            (Path(folder) / name).write_bytes(data)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "TextToImage":
        """Read what ``save_pretrained`` wrote. DataError when a part is missing or does not fit the others."""
        missing = [name for name in FILES if not (Path(folder) / name).is_file()]
        if missing:
            raise DataError(
                f"{folder} is not a complete model: {', '.join(missing)} missing; save it with save_pretrained"
            )
        weights, config, tokenizer, described, bpe, sampler = ((Path(folder) / name).read_bytes() for name in FILES)
        return cls(
            dalle_from_bytes(weights, config),
            tokenizer_from_bytes(tokenizer, described),
            bpe,
            SamplerConfig(**json.loads(sampler)),
        )

    def draw(
        self,
        prompts: Sequence[str],
        n: int = 1,
        seed: int = 0,
        sampler: SamplerConfig | None = None,
        runtime: Runtime | None = None,
        batch_size: int = 32,
    ) -> NDArray[np.uint8]:
        """Pictures of prompts, uint8 [prompts, n, H, W, 3]. A prompt longer than the model's text is cut."""
        if n < 1:
            raise UsageError(f"n is {n}; ask for at least 1 picture per prompt")
        runtime = runtime or Runtime()
        words, fingerprint = CaptionTokenizer.from_json(self.bpe), self.fingerprint
        limit = self.model.shape.max_text_tokens
        requests = [
            Request(tuple(words.encode(prompt)[:limit]), picture_key(fingerprint, prompt, seed, index))
            for prompt in prompts
            for index in range(n)
        ]
        tokens = draw(self.model, requests, sampler or self.sampler, runtime, batch_size)
        self.tokenizer.to(runtime.device).eval()
        made = [
            to_bytes(self.tokenizer.decode(torch.from_numpy(row[None].astype(np.int64)).to(runtime.device))).cpu()
            for row in tokens
        ]
        side = self.tokenizer.config.image_px
        pictures = torch.cat(made) if made else torch.empty(0, 3, side, side, dtype=torch.uint8)
        shown: NDArray[np.uint8] = pictures.permute(0, 2, 3, 1).reshape(len(prompts), n, side, side, 3).numpy()
        return shown

    def caption(self, pictures: NDArray[np.uint8], runtime: Runtime | None = None) -> list[str]:
        """Words for pictures uint8 [B, H, W, 3]; needs a model trained with ``image_first_share`` above 0."""
        runtime = runtime or Runtime()
        images = to_unit(torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)).to(runtime.device)
        self.model.to(runtime.device).eval()
        ids = self.tokenizer.to(runtime.device).eval().encode(images)
        words = CaptionTokenizer.from_json(self.bpe)
        return [words.decode(row) for row in describe(self.model, ids, runtime).tolist()]
