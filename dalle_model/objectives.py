"""What each network minimises: a batch as a pure function of the step, and the loss of some of its rows.

The loss of a part of a batch is already divided by the size of the whole batch over all ranks, so that parts add up:
neither the micro-batch size nor the number of ranks changes the sum.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dalle_model.captions import CaptionTokenizer
from dalle_model.config import OptimConfig, TrainConfig
from dalle_model.dalle import PAD, Dalle
from dalle_model.errors import DataError
from dalle_model.flops import FlopCounter
from dalle_model.runtime import Runtime
from dalle_model.sharding import plain
from dalle_model.token_batches import RowOrder, TokenRows, pad_text, rarity_weights

_DROP, _MERGES = 0xD309, 0xB9E  # stream numbers under Runtime.seed

Batch = dict[str, Tensor]
"""Named tensors with the rank's rows in axis 0; a zero-dimensional tensor belongs to the whole batch."""


@dataclass(frozen=True)
class Loss:
    """total: scalar to differentiate. terms: detached scalars for the curve; both add up over parts and ranks."""

    total: Tensor
    terms: Mapping[str, Tensor]


class Objective(ABC):
    """A network, its data, and the loss of one on the other.

    critic: a second network that judges the first and learns beside it, None = none; updates of it begin at step
    ``critic_from`` with ``critic_optim`` (None = as the network). While the network is updated, the critic takes no
    gradient.

    lr_shares: step size over that of the configuration, by the beginning of a parameter's name; 1 where none fits.
    """

    network: nn.Module
    lr_shares: Mapping[str, float] = MappingProxyType({})
    critic: nn.Module | None = None
    critic_optim: OptimConfig | None = None
    critic_from: int = 0

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """This rank's rows of update ``step``: a pure function of (seed, step, rank)."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, step: int) -> Loss:
        """Loss of the rows in ``batch``, a part of what ``batch(step)`` gave. ``network`` may be wrapped."""

    def critic_loss(self, critic: nn.Module, batch: Batch, step: int) -> Loss:
        """What the critic lowers, on the same rows. ``critic`` may be wrapped. Needed where there is a critic."""
        raise NotImplementedError

    def schedule(self, step: int) -> dict[str, float]:
        """Values that move with the step, for the curve."""
        return {}

    def settle(self, network: nn.Module) -> None:
        """Make what follows from the weights and is none, such as running statistics, fit averaged ones. No gradient."""
        return

    def references(self) -> dict[str, float]:
        """What terms of the loss are for a network that has learnt nothing: ln K of a choice among K."""
        return {}

    @property
    def tokens_per_row(self) -> int:
        """Tokens that the network reads per row, 0 where it reads none."""
        return 0

    def flops_per_row(self) -> float:
        """FLOPs of one row's forward and backward pass: three times the products counted in a forward pass."""
        row = {k: v[:1] if v.dim() else v for k, v in self.batch(0).items()}
        device = next(self.network.parameters()).device
        training = self.network.training
        self.network.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), FlopCounter() as counter:
            self.loss(self.network, {k: v.to(device) for k, v in row.items()}, 0)
        self.network.train(training)
        return 3.0 * float(counter.total)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear head, chunk by chunk: logits of all rows never exist together.

    The gradient is made in the forward pass while a chunk's logits are still in the cache, so nothing is kept or
    computed twice.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        chunk: int,
    ) -> Tensor:
        """hidden [R, dim], head [K, dim], targets int64 [R] -> sum of -ln p over rows, float32 scalar."""
        x, w = hidden.detach().to(dtype), head.detach().to(dtype)
        grad_x = torch.empty_like(x)
        grad_w = torch.zeros(w.shape, dtype=torch.float32, device=w.device)
        total = torch.zeros((), dtype=torch.float32, device=w.device)
        for start in range(0, len(x), chunk):
            rows, wanted = x[start : start + chunk], targets[start : start + chunk, None]
            p, log_p = _softmax_and_picked(torch.mm(rows, w.t()), wanted)
            total -= log_p.sum()
            p = p.scatter_add_(1, wanted, torch.full_like(log_p, -1.0)).to(dtype)
            grad_x[start : start + chunk] = torch.mm(p, w)
            grad_w += torch.mm(p.t(), rows)
        ctx.save_for_backward(grad_x.to(hidden.dtype), grad_w.to(head.dtype))
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients made in the forward pass."""
        grad_x, grad_w = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_x * grads[0], grad_w * grads[0], None, None, None


def _softmax_and_picked(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [r, K], targets int64 [r, 1] -> (softmax, float32 [r, K]; log p of the targets, float32 [r, 1]).

    One pass over the logits where the CPU's log_softmax and exp take three; it is 3.6 times as fast there.
    """
    if logits.device.type == "cpu":
        p = torch.softmax(logits, -1, dtype=torch.float32)
        picked = p.gather(1, wanted)
        if bool((picked >= torch.finfo(torch.float32).tiny).all()):  # else its logarithm would be wrong or infinite
            return p, picked.log_()
    log_p = torch.log_softmax(logits, -1, dtype=torch.float32)
    picked = log_p.gather(1, wanted)
    return log_p.exp_(), picked


def head_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, runtime: Runtime, chunk: int = 512) -> Tensor:
    """Sum over rows of the cross-entropy of ``hidden @ head.T``, float32 scalar, without holding all logits."""
    dtype = runtime.dtype if runtime.dtype != torch.float32 else hidden.dtype
    total: Tensor = ChunkedCrossEntropy.apply(hidden, head, targets, dtype, chunk)  # type: ignore[no-untyped-call]
    return total


class BpeDropout:
    """Captions tokenised anew at each step, merges passed over at random (paper, section 2.2: 10 %)."""

    def __init__(self, words: CaptionTokenizer, captions: Sequence[str], share: float, runtime: Runtime) -> None:
        self._words = words
        self._captions = captions
        self._share = share
        self._runtime = runtime

    def text(self, rows: NDArray[np.int64], step: int, length: int) -> Tensor:
        """Text ids int64 [B, length] of the given rows: a pure function of (seed, step)."""
        generator = self._runtime.generator(_MERGES, step)
        texts = [self._words.encode(self._captions[row], self._share, generator) for row in rows]
        return torch.from_numpy(pad_text(texts, length).astype(np.int64))


class DalleObjective(Objective):
    """Text and image cross-entropies, each over its own token count, weighted 1/8 and 7/8 (paper, section 2.2); of
    [image][text] 7/8 and 1/8.

    ``dropout`` is needed when ``config.bpe_dropout`` is above 0, else DataError.
    """

    def __init__(
        self, model: Dalle, rows: TokenRows, config: TrainConfig, runtime: Runtime, dropout: BpeDropout | None = None
    ) -> None:
        if config.bpe_dropout and dropout is None:
            raise DataError(
                f"bpe_dropout {config.bpe_dropout} needs the captions themselves; pass a BpeDropout or set it to 0"
            )
        self._dropout = dropout if config.bpe_dropout else None
        self.network: nn.Module = model
        self.model = model
        self._rows = rows
        self._config = config
        self._runtime = runtime
        weights = rows.weights * rarity_weights(rows.text, config.rarity) if config.rarity else rows.weights
        self._order = RowOrder(len(rows.image), config.optim.batch_size, runtime, weights)

    def batch(self, step: int) -> Batch:
        """text [b, L], image [b, N], read [b, N] (image as the network sees it), keep_text [b], number of text targets."""
        rows = self._order.rows(step)
        text, image = self._rows.gather(rows)
        if self._dropout is not None:
            text = self._dropout.text(rows, step, text.shape[1])
        generator = self._runtime.generator(_DROP, step)
        keep = torch.rand(len(rows), generator=generator) >= self._config.condition_dropout
        text = text * keep.unsqueeze(1)
        num_text = (text_targets(text) & keep.unsqueeze(1)).sum()
        mine = self._order.part()
        swap = torch.rand(image.shape, generator=generator) < self._config.token_swap
        read = torch.where(swap, image[torch.randperm(len(rows), generator=generator)], image)
        image_first = torch.rand((), generator=generator) < self._config.image_first_share
        shared = {"num_text": num_text, "image_first": image_first}
        return {"text": text[mine], "image": image[mine], "read": read[mine], "keep_text": keep[mine], **shared}

    def references(self) -> dict[str, float]:
        """Both cross-entropies of a model that has learnt nothing."""
        shape = self.model.shape
        return {"loss_image": math.log(shape.image_vocab), "loss_text": math.log(shape.text_vocab)}

    @property
    def tokens_per_row(self) -> int:
        """Text and image positions."""
        return self.model.shape.max_text_tokens + self.model.shape.num_image_tokens

    def flops_per_row(self) -> float:
        """What an update cannot do without: each matrix once per position, the causal half of attention, each head on
        its own positions; forward and backward (three forwards)."""
        shape, config = self.model.shape, self.model.config
        length = self.tokens_per_row
        trunk = sum(p.numel() for p in self.model.blocks.parameters() if p.dim() == 2) * length
        attention = length * length * config.dim * config.depth
        heads = config.dim * (shape.max_text_tokens * shape.text_vocab + shape.num_image_tokens * shape.image_vocab)
        return 6.0 * (trunk + attention + heads)

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Loss:
        """Nats per token of either kind, weighted."""
        image_first = bool(batch["image_first"])
        model = cast(Dalle, plain(network))  # the network that was given: its weights may be spread over ranks
        hidden = network(batch["text"], batch["read"], image_first)
        for_text, for_image = model.split(hidden, image_first)
        targets = text_targets(batch["text"]) & batch["keep_text"].unsqueeze(1)
        text_sum = head_cross_entropy(for_text[targets], model.text_head.weight, batch["text"][targets], self._runtime)
        image_sum = head_cross_entropy(
            for_image.flatten(0, 1), model.image_vectors(), batch["image"].flatten(), self._runtime
        )
        text_loss = text_sum / batch["num_text"].clamp(min=1)
        image_loss = image_sum / (self._config.optim.batch_size * batch["image"].shape[1])
        share = self._config.text_loss_share
        if image_first:  # the words are what is asked for there, and the picture is what is read
            share = 1 - share
        total = share * text_loss + (1 - share) * image_loss
        return Loss(total, {"loss": total.detach(), "loss_text": text_loss.detach(), "loss_image": image_loss.detach()})


def text_targets(text: Tensor) -> Tensor:
    """Which of the text positions [B, L] are trained: the caption's tokens and the one padding that ends it."""
    before = torch.cat([torch.ones_like(text[:, :1]), text[:, :-1]], dim=1)
    return (text != PAD) | (before != PAD)


def num_targets(text: NDArray[np.uint16]) -> NDArray[np.int64]:
    """How many tokens of each caption [R, L] are predicted: a caption that was cut has no end, int64 [R]."""
    counts: NDArray[np.int64] = text_targets(torch.from_numpy(text.astype(np.int64))).sum(1).numpy()
    return counts


@torch.inference_mode()
def validation_losses(
    model: Dalle, rows: TokenRows, runtime: Runtime, limit: int = 0, batch_size: int = 64
) -> tuple[float, float]:
    """(nats per text token, nats per image token) over ``rows``, at most ``limit`` of them spread evenly, 0 = all."""
    count = len(rows.image)
    chosen = np.unique(np.linspace(0, count - 1, min(limit or count, count)).round().astype(np.int64))
    text_sum = image_sum = num_text = num_image = 0.0
    for start in range(0, len(chosen), batch_size):
        text, image = (t.to(runtime.device) for t in rows.gather(chosen[start : start + batch_size]))
        with runtime.autocast():
            for_text, for_image = model.split(model(text, image))
            targets = text_targets(text)
            text_sum += float(head_cross_entropy(for_text[targets], model.text_head.weight, text[targets], runtime))
            image_sum += float(
                head_cross_entropy(for_image.flatten(0, 1), model.image_vectors(), image.flatten(), runtime)
            )
        num_text += float(targets.sum())
        num_image += image.numel()
    return text_sum / max(num_text, 1), image_sum / max(num_image, 1)
