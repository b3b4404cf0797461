"""Text alone: the trunk as a GPT of captions, to be used as one or to start a text-to-image model from."""

import math
from typing import cast

import numpy as np
import torch
from torch import nn

from dalle_model.config import TrainConfig
from dalle_model.dalle import IMAGE_PARTS, Dalle
from dalle_model.objectives import (
    Batch,
    BpeDropout,
    DalleObjective,
    Loss,
    Objective,
    head_cross_entropy,
    text_targets,
)
from dalle_model.runtime import Runtime
from dalle_model.sharding import plain
from dalle_model.token_batches import RowOrder, TokenRows, rarity_weights


class TextObjective(Objective):
    """Cross-entropy of captions, each token and the end, over their number in the whole batch. Pictures are not read.

    The parts of the model that only pictures move are frozen: a group of ranks would wait for their gradients.
    """

    def __init__(
        self, model: Dalle, rows: TokenRows, config: TrainConfig, runtime: Runtime, dropout: BpeDropout | None = None
    ) -> None:
        for name, p in model.named_parameters():
            p.requires_grad_(name.split(".")[0] not in IMAGE_PARTS)
        self.network: nn.Module = model
        self.model = model
        self._dropout = dropout if config.bpe_dropout else None
        self._rows = rows
        self._runtime = runtime
        weights = rows.weights * rarity_weights(rows.text, config.rarity) if config.rarity else rows.weights
        self._order = RowOrder(len(rows.text), config.optim.batch_size, runtime, weights)

    def batch(self, step: int) -> Batch:
        """text int64 [b, L], and the number of targets of the whole batch."""
        rows = self._order.rows(step)
        text = torch.from_numpy(self._rows.text[rows].astype(np.int64))
        if self._dropout is not None:
            text = self._dropout.text(rows, step, text.shape[1])
        return {"text": text[self._order.part()], "num_text": text_targets(text).sum()}

    def references(self) -> dict[str, float]:
        """The cross-entropy of a model that has learnt nothing."""
        return {"loss_text": math.log(self.model.shape.text_vocab)}

    @property
    def tokens_per_row(self) -> int:
        """Text positions."""
        return self.model.shape.max_text_tokens

    def flops_per_row(self) -> float:
        """As of ``DalleObjective``, of the text alone."""
        config, length = self.model.config, self.tokens_per_row
        trunk = sum(p.numel() for p in self.model.blocks.parameters() if p.dim() == 2) * length
        heads = config.dim * length * self.model.shape.text_vocab
        return 6.0 * (trunk + length * length * config.dim * config.depth + heads)

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Loss:
        """Nats per token."""
        targets = text_targets(batch["text"])
        hidden = network(batch["text"], None)[targets]
        head = cast(Dalle, plain(network)).text_head.weight  # of the network given: it may be spread over ranks
        total = head_cross_entropy(hidden, head, batch["text"][targets], self._runtime)
        total = total / batch["num_text"].clamp(min=1)
        return Loss(total, {"loss": total.detach(), "loss_text": total.detach()})


def transformer_objective(
    model: Dalle, rows: TokenRows, config: TrainConfig, runtime: Runtime, dropout: BpeDropout | None = None
) -> Objective:
    """The objective that ``config.objective`` names; see ``DalleObjective`` and ``TextObjective``."""
    kind = TextObjective if config.objective == "text" else DalleObjective
    return kind(model, rows, config, runtime, dropout)


@torch.inference_mode()
def text_loss(model: Dalle, rows: TokenRows, runtime: Runtime, limit: int = 0, batch_size: int = 64) -> float:
    """Nats per text token of captions alone, over at most ``limit`` rows spread evenly, 0 = all."""
    count = len(rows.text)
    chosen = np.unique(np.linspace(0, count - 1, min(limit or count, count)).round().astype(np.int64))
    total = number = 0.0
    for start in range(0, len(chosen), batch_size):
        text = torch.from_numpy(rows.text[chosen[start : start + batch_size]].astype(np.int64)).to(runtime.device)
        targets = text_targets(text)
        with runtime.autocast():
            hidden = model(text, None)[targets]
            total += float(head_cross_entropy(hidden, model.text_head.weight, text[targets], runtime))
        number += float(targets.sum())
    return total / max(number, 1)
