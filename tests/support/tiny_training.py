"""A transformer and a token set small enough to train in a test, and exact ways to compare what came out."""

import numpy as np

from dalle_model.config import ModelConfig, OptimConfig, TrainConfig
from dalle_model.dalle import DalleShape, build_dalle
from dalle_model.objectives import DalleObjective
from dalle_model.runtime import Runtime
from dalle_model.token_batches import TokenRows

SHAPE = DalleShape(text_vocab=20, max_text_tokens=5, image_vocab=32, grid=2)
NUM_ROWS = 22  # not a multiple of the batch: epochs end inside batches


def token_rows(num_rows: int = NUM_ROWS) -> TokenRows:
    generator = np.random.default_rng(0)
    text = generator.integers(1, SHAPE.text_vocab, (num_rows, SHAPE.max_text_tokens)).astype(np.uint16)
    for i, row in enumerate(text):
        row[1 + i % SHAPE.max_text_tokens :] = 0
    image = generator.integers(0, SHAPE.image_vocab, (num_rows, SHAPE.num_image_tokens)).astype(np.uint16)
    return TokenRows(text, image, np.ones(num_rows, np.float32))


def dalle_objective(optim: OptimConfig, runtime: Runtime, dropout: float = 0.1) -> DalleObjective:
    model = build_dalle(ModelConfig(dim=32, depth=2, heads=2, dropout=dropout), SHAPE, runtime.generator(1))
    return DalleObjective(model, token_rows(), TrainConfig(optim=optim, condition_dropout=0.3), runtime)


def optim_of(kind: str = "adamw", **changes: object) -> OptimConfig:
    values: dict[str, object] = {
        "steps": 12,
        "batch_size": 8,
        "optimizer": kind,
        "warmup_steps": 3,
        "ema": 0.9,
        "checkpoint_every": 1,
        "log_every": 1,
    }
    return OptimConfig.model_validate(values | changes)


def weights(objective: DalleObjective) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in objective.network.state_dict().items()}


def hex_curve(curve: list[dict[str, float]]) -> list[dict[str, str]]:
    return [{k: v.hex() for k, v in point.items()} for point in curve]
