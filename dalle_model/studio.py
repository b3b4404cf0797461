"""What one person does with one model: finish a picture, vary it, choose among candidates, and let the model check itself.

Every picture is a pure function of (model, input, seed, index), as in ``sampling``.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dalle_model.captions import CaptionTokenizer
from dalle_model.config import SamplerConfig
from dalle_model.decoder import Decoder
from dalle_model.errors import UsageError
from dalle_model.images import square
from dalle_model.records import normalise_caption
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw_with, picture_key
from dalle_model.text_to_image import TextToImage
from dalle_model.tokenizers.base import decode_alone, to_bytes

UInt8 = NDArray[np.uint8]
Scorer = Callable[[str, UInt8], NDArray[np.float32]]  # (prompt, pictures [B, H, W, 3]) -> score [B], more is better


@dataclass(frozen=True)
class Candidate:
    """One picture of the loop. ``verdict``: kept, or flagged when no round reached the threshold.

    words: the model's own caption. score: mean ln p per token of the prompt given the picture, nats.
    agreement: F1 of the prompt's words and the model's own, 0 to 1.
    """

    picture: UInt8
    index: int
    words: str
    score: float
    agreement: float
    verdict: str = "kept"


class Studio:
    """A complete model, its decoder packed once.

    sampler: None = as stored with the model. say: told what takes long before the first picture.
    """

    def __init__(
        self,
        parts: TextToImage,
        runtime: Runtime | None = None,
        sampler: SamplerConfig | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.parts, self.runtime, self.sampler = parts, runtime or Runtime(), sampler or parts.sampler
        self._say = say
        self.words = CaptionTokenizer.from_json(parts.bpe)
        self.identity = parts.identity

    @cached_property
    def decoder(self) -> Decoder:
        """The packed transformer."""
        return Decoder(self.parts.model.eval(), self.runtime, self.sampler.weights, say=self._say)

    @property
    def image_px(self) -> int:
        """Side of the pictures, px."""
        return self.parts.tokenizer.config.image_px

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a prompt; one longer than the model's text is cut."""
        return tuple(self.words.encode(prompt)[: self.parts.model.shape.max_text_tokens])

    def _squared(self, image: UInt8) -> UInt8:
        return np.array(square(image, self.image_px)[None])  # a copy: Pillow's own memory cannot be written

    def tokens_of(self, image: UInt8) -> tuple[int, ...]:
        """Image tokens of a picture of any size, uint8 [H, W, 3], which is cropped to a square and scaled."""
        return tuple(self.parts._image_ids(self._squared(image), self.runtime)[0].tolist())

    def draw_tokens(
        self,
        prompt: str,
        n: int,
        seed: int = 0,
        first: int = 0,
        given: tuple[int, ...] = (),
        negative: str = "",
    ) -> NDArray[np.uint16]:
        """Image tokens of pictures ``first``..first + n - 1 of a prompt, uint16 [n, N], all beginning with ``given``."""
        if n < 1:
            raise UsageError(f"n is {n}; ask for at least 1 picture")
        prompt, negative = (
            normalise_caption(prompt),
            normalise_caption(negative),
        )  # as in batches: one text, one picture
        name = prompt + (f"\0{negative}" if negative else "")
        if given:
            name += "\0" + hashlib.sha256(np.array(given, np.uint16).tobytes()).hexdigest()
        ids, away = self.prompt_ids(prompt), self.prompt_ids(negative)
        keys = [picture_key(self.identity, name, seed, first + i) for i in range(n)]
        return draw_with(self.decoder, [Request(ids, key, given, away) for key in keys], self.sampler)

    def pictures(self, tokens: NDArray[np.uint16]) -> UInt8:
        """Image tokens [n, N] -> uint8 [n, H, W, 3]; none depends on its neighbours."""
        made = to_bytes(decode_alone(self.parts.tokenizer, tokens, self.runtime.device))
        shown: UInt8 = made.permute(0, 2, 3, 1).numpy()
        return shown

    def draw(self, prompt: str, n: int = 1, seed: int = 0, negative: str = "") -> UInt8:
        """Pictures of a prompt, uint8 [n, H, W, 3]."""
        return self.pictures(self.draw_tokens(prompt, n, seed, negative=negative))

    def complete(
        self,
        image: UInt8,
        prompt: str,
        keep: float = 0.5,
        n: int = 1,
        seed: int = 0,
        mask: NDArray[np.bool_] | None = None,
    ) -> UInt8:
        """Pictures that begin as ``image`` does: uint8 [H, W, 3] -> uint8 [n, H', W', 3].

        keep: share of the image tokens that stay, from the top, in raster order. mask: instead, bool [H, W] of the
        square picture, what is drawn anew; it must end at the raster tail: from its first token on, everything.
        """
        total = self.parts.model.shape.num_image_tokens
        kept = round(keep * total) if mask is None else kept_tokens(mask, self.parts.model.shape.grid)
        if not 0 < kept < total:
            raise UsageError(
                f"{kept} of {total} image tokens would be kept; keep between 1 and {total - 1} "
                f"(a share between {1 / total:.3f} and {1 - 1 / total:.3f})"
            )
        return self.pictures(self.draw_tokens(prompt, n, seed, given=self.tokens_of(image)[:kept]))

    def vary(
        self, image: UInt8, n: int = 4, strength: float = 0.6, prompt: str = "", seed: int = 0
    ) -> tuple[UInt8, str]:
        """Variations of a picture: the top stays, the share ``strength`` of its tokens is drawn anew.

        prompt: what to draw; empty = the model's own words for the picture (needs a model that describes pictures).
        Returns (uint8 [n, H, W, 3], the prompt).
        """
        known = self.parts.model.directions
        if not prompt and known and "image_to_text" not in known:
            raise UsageError(
                "a variation without a prompt takes the model's own words for the picture, and this model has none; "
                "say with --prompt what the picture shows, or train with train.image_first_share above 0"
            )
        words = prompt or self.caption(self._squared(image))[0]
        return self.complete(image, words, 1.0 - strength, n, seed), words

    def caption(self, pictures: UInt8) -> list[str]:
        """The model's own words for pictures uint8 [B, H, W, 3] of its size."""
        return self.parts.caption(pictures, runtime=self.runtime)

    def score(self, prompt: str, pictures: UInt8) -> NDArray[np.float32]:
        """Mean ln p per token of the prompt given each picture, nats, float32 [B]: how well they fit the words."""
        # the end of the text counts; a prompt that was cut has none
        tokens = min(len(self.prompt_ids(prompt)) + 1, self.parts.model.shape.max_text_tokens)
        return self.parts.score_text(pictures, [prompt], runtime=self.runtime) / np.float32(tokens)

    def best_of(
        self, prompt: str, candidates: int, keep: int = 1, seed: int = 0, scorer: Scorer | None = None
    ) -> tuple[UInt8, NDArray[np.float32], NDArray[np.int64]]:
        """The best ``keep`` of many: (uint8 [keep, H, W, 3], their scores, their indices), best first.

        scorer: what ranks them; None = ``score``, the model itself; ``ClipScorer`` where its weights are given.
        """
        if not 1 <= keep <= candidates:
            raise UsageError(f"keep is {keep} of {candidates} candidates; keep at least 1 and at most all")
        pictures = self.draw(prompt, candidates, seed)
        scores = (scorer or self.score)(prompt, pictures)
        order = np.argsort(-scores, kind="stable")[:keep]
        return pictures[order], scores[order], order

    def loop(
        self, prompt: str, n: int = 4, keep: int = 1, rounds: int = 3, threshold: float = -1.0, seed: int = 0
    ) -> list[Candidate]:
        """Prompt -> pictures -> the model's own words about each -> consistency -> keep the best, resample or flag.

        n pictures are drawn per round, until ``keep`` of them score at least ``threshold`` (mean ln p per token of the
        prompt given the picture) or ``rounds`` are over; what is kept below the threshold is flagged. Best first.
        """
        if not 1 <= keep <= n * max(rounds, 0):
            raise UsageError(
                f"keep is {keep}, but {rounds} rounds of {n} pictures are drawn; keep at least 1, at most all"
            )
        found: list[Candidate] = []
        for number in range(rounds):
            pictures = self.pictures(self.draw_tokens(prompt, n, seed, first=number * n))
            told, scores = self.caption(pictures), self.score(prompt, pictures)
            for i, (picture, words, score) in enumerate(zip(pictures, told, scores, strict=True)):
                found.append(Candidate(picture, number * n + i, words, float(score), agreement(prompt, words)))
            if sum(c.score >= threshold for c in found) >= keep:
                break
        best = sorted(found, key=lambda c: (-c.score, c.index))[:keep]
        return [c if c.score >= threshold else _flagged(c) for c in best]


def _flagged(c: Candidate) -> Candidate:
    return Candidate(c.picture, c.index, c.words, c.score, c.agreement, "flagged")


def agreement(prompt: str, words: str) -> float:
    """F1 of two texts as sets of words, 0 to 1; two empty texts agree."""
    a, b = set(prompt.lower().split()), set(words.lower().split())
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def kept_tokens(mask: NDArray[np.bool_], grid: int) -> int:
    """How many image tokens stay under a mask bool [H, W] of what is drawn anew (any of its pixels counts).

    UsageError when the mask is empty or does not end at the raster tail: a token after its first one would stay.
    """
    side = mask.shape[0]
    if mask.ndim != 2 or mask.shape[1] != side or side % grid:
        raise UsageError(f"the mask is {list(mask.shape)}; it must be square, its side a multiple of {grid} px")
    touched = mask.reshape(grid, side // grid, grid, side // grid).any(axis=(1, 3)).ravel()
    if not touched.any():
        raise UsageError("the mask is empty; mark what is to be drawn anew")
    first = int(touched.argmax())
    holes = np.flatnonzero(~touched[first:])
    if len(holes):
        row, column = divmod(first + int(holes[0]), grid)
        raise UsageError(
            f"the mask does not end at the raster tail: the token in row {row}, column {column} comes after its first one "
            "and is not in it; mark everything from there to the lower right corner"
        )
    return first


class ClipScorer:
    """Cosine of text and picture under a CLIP model from a folder (transformers' ``CLIPModel`` and its tokenizer)."""

    def __init__(self, folder: str, runtime: Runtime | None = None) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.runtime = runtime or Runtime()
        try:
            model: torch.nn.Module = CLIPModel.from_pretrained(folder, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{folder} is not a folder with CLIP weights and tokenizer: {str(error).splitlines()[0]}"
            ) from error
        self.model: Any = model.to(self.runtime.device).eval()

    @torch.inference_mode()
    def __call__(self, prompt: str, pictures: UInt8) -> NDArray[np.float32]:
        """float32 [B]; pictures uint8 [B, H, W, 3] are scaled (bicubic) and normalised as CLIP was trained."""
        side = self.model.config.vision_config.image_size
        limit = self.model.config.text_config.max_position_embeddings
        pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
        pixels = torch.nn.functional.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, spread = (torch.tensor(v).view(3, 1, 1) for v in (_CLIP_MEAN, _CLIP_SPREAD))
        read = self.tokenizer([prompt], return_tensors="pt", truncation=True, max_length=limit)
        out = self.model(
            input_ids=read.input_ids.to(self.runtime.device),
            attention_mask=read.attention_mask.to(self.runtime.device),
            pixel_values=((pixels - mean) / spread).to(self.runtime.device),
        )
        cosine: NDArray[np.float32] = (out.image_embeds @ out.text_embeds.T)[:, 0].float().cpu().numpy()
        return cosine


_CLIP_MEAN, _CLIP_SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # Radford 2021


def scorer_of(studio: Studio, clip_folder: str) -> Scorer:
    """CLIP's where a folder is given, else the model's own."""
    return ClipScorer(clip_folder, studio.runtime) if clip_folder else studio.score
