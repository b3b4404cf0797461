"""A complete model in one folder: transformer, image tokenizer, caption tokenizer and sampler, for notebooks.

model = TextToImage.from_pretrained("folder")
pictures = model.draw(["red apple"], n=4)  # uint8 [1, 4, H, W, 3]
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dalle_model.captions import CaptionTokenizer
from dalle_model.config import SamplerConfig
from dalle_model.dalle import Dalle, dalle_from_bytes, dalle_to_bytes
from dalle_model.describing import GREEDY, continue_captions, describe, score_captions
from dalle_model.errors import DataError, UsageError
from dalle_model.identity import model_identity
from dalle_model.model_card import CardFacts, render_card
from dalle_model.pretrained import FILES, Hub, locate, push, read_files, write_files
from dalle_model.records import normalise_caption
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw, picture_key
from dalle_model.token_batches import pad_text
from dalle_model.tokenizers.base import ImageTokenizer, decode_alone, to_bytes, to_unit
from dalle_model.tokenizers.registry import tokenizer_from_bytes, tokenizer_to_bytes


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
        """SHA-256 over all parts but the sampler."""
        parts = self._parts()
        return hashlib.sha256(b"".join(hashlib.sha256(parts[name]).digest() for name in FILES[:-1])).hexdigest()

    @property
    def identity(self) -> str:
        """What the noise of pictures and texts is keyed by: the hash of the transformer's weights and config."""
        return model_identity(self.model)

    def save_pretrained(self, folder: str | Path, facts: CardFacts | None = None) -> None:
        """Write the parts as safetensors and JSON, and a model card, into ``folder`` (created when absent).

        facts: what the card tells of data, settings, figures and intended use.
        """
        card = render_card(self.model, self.sampler.model_dump(mode="json"), facts or CardFacts())
        write_files(Path(folder), self._parts(), card)

    def push_to_hub(
        self,
        repo_id: str,
        facts: CardFacts | None = None,
        *,
        private: bool = True,
        message: str = "Upload model",
        hub: Hub | None = None,
    ) -> None:
        """Publish what ``save_pretrained`` writes to a repository of the Hugging Face hub, private unless told otherwise.

        hub: a ``huggingface_hub.HfApi``; None = one with the login of this machine. SourceError when it refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, facts)
            push(Path(folder), repo_id, private=private, message=message, hub=hub)

    @classmethod
    def from_pretrained(cls, place: str | Path, **hub: Any) -> "TextToImage":
        """Read what ``save_pretrained`` wrote: a folder, an ``s3://`` address, or a name/repository of the hub.

        hub: arguments of ``huggingface_hub.snapshot_download``, such as ``revision``. DataError when a part is missing,
        was changed, or does not fit the others; SourceError when it cannot be fetched.
        """
        weights, config, tokenizer, described, bpe, sampler = read_files(locate(place, **hub))
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
        batch_size: int = 0,
    ) -> NDArray[np.uint8]:
        """Pictures of prompts, uint8 [prompts, n, H, W, 3]. A prompt longer than the model's text is cut."""
        if n < 1:
            raise UsageError(f"n is {n}; ask for at least 1 picture per prompt")
        runtime = runtime or Runtime()
        words, identity = CaptionTokenizer.from_json(self.bpe), self.identity
        limit = self.model.shape.max_text_tokens
        requests = [
            Request(tuple(words.encode(prompt)[:limit]), picture_key(identity, prompt, seed, index))
            for prompt in map(normalise_caption, prompts)
            for index in range(n)
        ]
        tokens = draw(self.model, requests, sampler or self.sampler, runtime, batch_size)
        pictures, side = to_bytes(decode_alone(self.tokenizer, tokens, runtime.device)), self.tokenizer.config.image_px
        shown: NDArray[np.uint8] = pictures.permute(0, 2, 3, 1).reshape(len(prompts), n, side, side, 3).numpy()
        return shown

    def caption(
        self,
        images: NDArray[np.uint8],
        seed: int = 0,
        sampler: SamplerConfig = GREEDY,
        runtime: Runtime | None = None,
    ) -> list[str]:
        """Words for pictures uint8 [B, H, W, 3]; needs a model trained with ``image_first_share`` above 0.

        The most probable words, or drawn by ``sampler``: a picture that is given several times then gets different ones.
        """
        runtime = runtime or Runtime()
        hashes = [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images]
        identity = self.identity
        keys = [picture_key(identity, h, seed, hashes[:i].count(h)) for i, h in enumerate(hashes)]
        ids = describe(self.model, self._image_ids(images, runtime), runtime, sampler, keys)
        words = CaptionTokenizer.from_json(self.bpe)
        return [words.decode(row) for row in ids.tolist()]

    def score_text(
        self, images: NDArray[np.uint8] | None, texts: Sequence[str], runtime: Runtime | None = None
    ) -> NDArray[np.float32]:
        """ln p(text | picture) in nats, float32 [B], of pairs uint8 [B, H, W, 3] and texts; longer texts are cut.

        One picture for many texts, or one text for many pictures, is repeated. ``images`` None: ln p(text) of the text
        alone. Needs a model trained in that direction. UsageError when the numbers differ otherwise.
        """
        runtime = runtime or Runtime()
        words, limit = CaptionTokenizer.from_json(self.bpe), self.model.shape.max_text_tokens
        text = torch.from_numpy(pad_text([words.encode(t) for t in texts], limit).astype(np.int64))
        ids = None if images is None else self._image_ids(images, runtime)
        if ids is not None and len(ids) != len(text):
            if len(ids) != 1 and len(text) != 1:
                raise UsageError(
                    f"{len(ids)} pictures and {len(text)} texts do not pair up; give as many of each, or 1"
                )
            count = max(len(ids), len(text))
            ids, text = ids.expand(count, -1), text.expand(count, -1)
        scores: NDArray[np.float32] = score_captions(self.model, text, ids, runtime).cpu().numpy()
        return scores

    def continue_text(
        self,
        prompts: Sequence[str],
        n: int = 1,
        seed: int = 0,
        sampler: SamplerConfig | None = None,
        runtime: Runtime | None = None,
    ) -> list[list[str]]:
        """Whole texts that begin as the prompts do, [prompts][n]: the model as a GPT of captions.

        ``sampler`` None draws from the model's own distribution; temperature 0 takes the most probable words. DataError
        when a prompt leaves no place to go on.
        """
        if n < 1:
            raise UsageError(f"n is {n}; ask for at least 1 text per prompt")
        words, identity = CaptionTokenizer.from_json(self.bpe), self.identity
        begun = [words.encode(prompt) for prompt in prompts for _ in range(n)]
        plain = map(normalise_caption, prompts)
        keys = [picture_key(identity, prompt, seed, index) for prompt in plain for index in range(n)]
        ids = continue_captions(self.model, begun, runtime or Runtime(), sampler or SamplerConfig(), keys)
        texts = [words.decode(row) for row in ids.tolist()]
        return [texts[i : i + n] for i in range(0, len(texts), n)]

    @torch.inference_mode()
    def _image_ids(self, images: NDArray[np.uint8], runtime: Runtime) -> Tensor:
        """Pictures uint8 [B, H, W, 3] -> ids int64 [B, N]. UsageError when they do not have the tokenizer's size."""
        side = self.tokenizer.config.image_px
        if images.ndim != 4 or images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
            raise UsageError(
                f"pictures are {images.dtype} {list(images.shape)}; this model reads uint8 [B, {side}, {side}, 3]: scale them first"
            )
        self.tokenizer.to(runtime.device).eval()
        pixels = to_unit(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2))
        # one by one: a picture's codes must not depend on its neighbours, not even by a last bit
        ids = [self.tokenizer.encode(p[None].to(runtime.device)).long() for p in pixels]
        return torch.cat(ids) if ids else torch.zeros(0, self.tokenizer.num_tokens, dtype=torch.long)
