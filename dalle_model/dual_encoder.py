"""A small judge of its own: does a picture fit a caption? Two towers, trained to find each other (CLIP's loss).

Radford et al. 2021 (arXiv 2103.00020), at the size of this project's pictures, trained on the training split alone. It
is no CLIP, and its scores are not CLIP scores: it knows what the training pictures show, and nothing else.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from dalle_model.captions import CaptionTokenizer
from dalle_model.config import OptimConfig
from dalle_model.errors import DataError
from dalle_model.objectives import Batch, Loss, Objective
from dalle_model.runtime import Runtime
from dalle_model.token_batches import RowOrder, pad_text

DUAL_ENCODER_VERSION = 2
"""Rises whenever the network, its data or its training changes."""

PX = 32
MAX_WORDS = 40  # text positions
VOCAB = 2048
_WIDTH, _EMBED = 128, 64
_MAX_LOGIT_SCALE = math.log(100.0)  # as in CLIP
_BATCH = 256
_SHIFT = 2  # px by which pictures are moved in training

UInt8 = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]


class DualEncoder(nn.Module):
    """Pictures and captions as unit vectors of one space."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, 48, 96, 160)
        stages: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            stages += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), nn.GroupNorm(8, fan_out), nn.GELU()]
        self.see = nn.Sequential(*stages)
        self.image_out = nn.Linear(sizes[-1] * (PX // 8) ** 2, _EMBED)  # place matters: "left of"
        self.words = nn.Embedding(VOCAB, _WIDTH)
        self.places = nn.Parameter(torch.randn(MAX_WORDS, _WIDTH) * 0.02)
        nn.init.normal_(self.words.weight, std=0.02)
        self.read = nn.ModuleList(
            nn.TransformerEncoderLayer(
                _WIDTH, 4, 2 * _WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(_WIDTH)
        self.text_out = nn.Linear(_WIDTH, _EMBED)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def image(self, images: Tensor) -> Tensor:
        """Float [B, 3, PX, PX] in [0, 1] -> unit vectors float32 [B, 64]."""
        return F.normalize(self.image_out(self.see(images * 2 - 1).flatten(1)).float(), dim=1)

    def text(self, ids: Tensor) -> Tensor:
        """Ids int64 [B, MAX_WORDS], 0 = padding -> unit vectors float32 [B, 64]."""
        ids = ids[:, : max(1, int((ids > 0).any(0).sum()))]  # most captions are short
        there = ids > 0
        x = self.words(ids) + self.places[: ids.shape[1]]
        empty = ~there.any(1)
        hidden = ~there
        hidden[:, 0] &= ~empty  # attention over nothing is not a number
        for layer in self.read:
            x = layer(x, src_key_padding_mask=hidden)
        shown = (~hidden).unsqueeze(2)
        mean = (self.norm(x) * shown).sum(1) / shown.sum(1)
        return F.normalize(self.text_out(mean).float(), dim=1)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.image(images), self.text(ids)


def small(pictures: UInt8) -> Tensor:
    """uint8 [n, H, W, 3] -> float [n, 3, PX, PX] in [0, 1], averaged down."""
    images = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    if images.shape[2] < PX:
        return F.interpolate(images, size=PX, mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(images, PX)


def caption_ids(words: CaptionTokenizer, captions: Sequence[str]) -> Tensor:
    """Captions -> int64 [n, MAX_WORDS], cut or padded with 0."""
    return torch.from_numpy(pad_text([words.encode(c) for c in captions], MAX_WORDS).astype(np.int64))


class ContrastiveObjective(Objective):
    """Each picture finds its caption among those of the batch, and each caption its picture.

    Equal captions in a batch are no wrong answers to each other. A part of a batch is compared within the part.
    """

    def __init__(
        self, network: DualEncoder, pictures: Tensor, ids: Tensor, optim: OptimConfig, runtime: Runtime
    ) -> None:
        """``pictures`` float [R, 3, PX, PX], ``ids`` int64 [R, MAX_WORDS]."""
        self.network: nn.Module = network
        self._net = network
        self._pictures, self._ids = pictures, ids
        self._optim, self._runtime = optim, runtime
        self._order = RowOrder(len(ids), optim.batch_size, runtime)

    def batch(self, step: int) -> Batch:
        """images [b, 3, PX, PX], moved by up to 2 px, and ids [b, MAX_WORDS]."""
        rows = torch.tensor(self._order.rows(step)[self._order.part()])  # a copy: the order is read-only
        generator = self._runtime.generator(0xD0A1, step)
        down, right = (int(torch.randint(2 * _SHIFT + 1, (1,), generator=generator)) for _ in range(2))
        padded = F.pad(self._pictures[rows], (_SHIFT,) * 4, mode="replicate")
        return {"images": padded[:, :, down : down + PX, right : right + PX].contiguous(), "ids": self._ids[rows]}

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Loss:
        """Symmetric cross-entropy, nats."""
        seen, read = network(batch["images"], batch["ids"])
        logits = seen @ read.T * self._net.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp()
        equal = (batch["ids"][:, None] == batch["ids"][None]).all(2)
        equal.fill_diagonal_(False)
        logits = logits.masked_fill(equal, -math.inf)
        own = torch.arange(len(logits), device=logits.device)
        share = len(logits) / (self._optim.batch_size // self._runtime.world)
        total = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2 * share
        return Loss(total, {"loss": total.detach()})


class Judge:
    """A trained dual encoder with its words; also ``Features`` of pictures for distances."""

    def __init__(self, network: DualEncoder, words: CaptionTokenizer, digest: str, runtime: Runtime) -> None:
        self.name = "dual_encoder"
        self.digest = digest
        self._network = network.to(runtime.device).eval()
        self._words = words
        self._runtime = runtime

    def of(self, images: Tensor) -> FloatArray:
        """Float [n, 3, H, W] in [0, 1] -> unit vectors float64 [n, 64]."""
        return self.pictures((images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy())

    @torch.inference_mode()
    def pictures(self, pictures: UInt8) -> FloatArray:
        """uint8 [n, H, W, 3] -> unit vectors float64 [n, 64], in float32 on every device."""
        parts = [
            self._network.image(small(pictures[start : start + _BATCH]).to(self._runtime.device)).cpu().double()
            for start in range(0, len(pictures), _BATCH)
        ]
        return torch.cat(parts).numpy() if parts else np.empty((0, _EMBED))

    @torch.inference_mode()
    def captions(self, captions: Sequence[str]) -> FloatArray:
        """Captions -> unit vectors float64 [n, 64]."""
        ids = caption_ids(self._words, captions)
        parts = [
            self._network.text(ids[start : start + _BATCH].to(self._runtime.device)).cpu().double()
            for start in range(0, len(ids), _BATCH)
        ]
        return torch.cat(parts).numpy() if parts else np.empty((0, _EMBED))


def build_dual_encoder(generator: torch.Generator) -> DualEncoder:
    """A fresh network, a pure function of the generator's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        return DualEncoder()


def dual_encoder_to_bytes(network: DualEncoder) -> bytes:
    """Weights as safetensors."""
    return save_tensors({name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()})


def judge_from_bytes(weights: bytes, bpe: bytes, runtime: Runtime) -> Judge:
    """A judge from what was stored. DataError when the weights are of another network."""
    network = DualEncoder()
    try:
        network.load_state_dict(load_tensors(weights))
    except (RuntimeError, SafetensorError) as error:
        raise DataError(f"not the weights of a dual encoder ({str(error)[:100]}); evaluate again") from error
    about: dict[str, Any] = {"version": DUAL_ENCODER_VERSION, "bpe": hashlib.sha256(bpe).hexdigest()}
    digest = hashlib.sha256(weights + json.dumps(about, sort_keys=True).encode()).hexdigest()
    return Judge(network, CaptionTokenizer.from_json(bpe), digest, runtime)


# --- what the judge says ---------------------------------------------------------------------------------------------


def preference(images: FloatArray, captions: FloatArray, own: Sequence[str]) -> FloatArray:
    """Share of the other captions that fit each picture less than its own does; chance is 0.5.

    images, captions: unit vectors [n, d], row i of both belonging together; own: the captions, equal ones being no
    rivals -> [n], ties counting a half, 0.5 where a caption has no rival.
    """
    scores = images @ captions.T
    mine = np.diag(scores)[:, None]
    _, kind = np.unique(np.asarray(own, dtype=object).astype(str), return_inverse=True)
    rival = kind[:, None] != kind[None, :]
    won = ((scores < mine) + 0.5 * (scores == mine)) * rival
    count = rival.sum(1)
    return np.where(count > 0, won.sum(1) / np.maximum(count, 1), 0.5)


def one_word_apart(captions: Sequence[str], known: Sequence[str], most: int = 16) -> list[list[str]]:
    """For each caption, up to ``most`` known captions that differ from it in exactly one word, in alphabetical order."""
    gaps: dict[tuple[str, ...], set[str]] = {}
    split = {caption: tuple(caption.split()) for caption in {*captions, *known}}
    for caption in set(known):
        for gap in _gaps(split[caption]):
            gaps.setdefault(gap, set()).add(caption)
    out = []
    for caption in captions:
        near = {other for gap in _gaps(split[caption]) for other in gaps.get(gap, ())} - {caption}
        out.append(sorted(near)[:most])
    return out


def _gaps(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [(*words[:i], "\0", *words[i + 1 :]) for i in range(len(words))] if len(words) > 1 else []
