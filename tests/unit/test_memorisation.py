"""A transformer that has really memorised pictures is found out, and one that never saw them is not (D29)."""

import numpy as np

from dalle_model.config import ModelConfig, OptimConfig, SamplerConfig, TrainConfig
from dalle_model.dalle import DalleShape, build_dalle
from dalle_model.ngrams import grid_runs_known
from dalle_model.objectives import DalleObjective
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw
from dalle_model.scenes import render, scene_at
from dalle_model.token_batches import TokenRows
from dalle_model.training import fit
from tasks.copies import CopyDetector, Nearest

PX, GRID, LEVELS = 32, 4, 4
PLANTED, OTHERS = 20, 40
PICTURES = np.stack([render(scene_at(9, index).things, PX) for index in range(300)])


def encode(pictures: np.ndarray) -> np.ndarray:
    """The simplest tokenizer: a token is the mean colour of an 8 px block in 4 levels of each channel, 64 codes."""
    blocks = pictures.reshape(-1, GRID, PX // GRID, GRID, PX // GRID, 3).mean((2, 4))
    levels = np.minimum((blocks / 256 * LEVELS).astype(np.int64), LEVELS - 1)
    return (levels @ [LEVELS * LEVELS, LEVELS, 1]).reshape(len(pictures), -1).astype(np.uint16)


def decode(tokens: np.ndarray) -> np.ndarray:
    """Tokens [n, 16] as pictures uint8 [n, 32, 32, 3]."""
    ids = tokens.astype(np.int64).reshape(-1, GRID, GRID)
    levels = np.stack([ids // LEVELS**2, ids // LEVELS % LEVELS, ids % LEVELS], -1)
    colours = ((levels + 0.5) * 256 / LEVELS).astype(np.uint8)
    return np.repeat(np.repeat(colours, PX // GRID, axis=1), PX // GRID, axis=2)


# Pictures as this tokenizer shows them, each with other tokens than all others.
TOKENS = np.unique(encode(PICTURES), axis=0)
TOKENS = TOKENS[np.random.default_rng(1).permutation(len(TOKENS))]
CAPTIONS = np.array([(1 + i // 12, 1 + i % 12) for i in range(PLANTED + OTHERS)], np.uint16)


def drawn_after_training(rows: np.ndarray) -> np.ndarray:
    """Image tokens drawn for the captions of the planted pictures by a model trained on some rows, over and over."""
    runtime = Runtime()
    shape = DalleShape(text_vocab=20, max_text_tokens=2, image_vocab=LEVELS**3, grid=GRID)
    optim = OptimConfig(steps=200, batch_size=30, lr=5e-3, optimizer="muon", warmup_steps=5, log_every=200)
    train = TrainConfig(optim=optim, condition_dropout=0.0)
    model = build_dalle(ModelConfig(dim=32, depth=2, heads=2), shape, runtime.generator(0))
    data = TokenRows(CAPTIONS[rows], TOKENS[rows], np.ones(len(rows), np.float32))
    fit(DalleObjective(model, data, train, runtime), optim, runtime)
    requests = [Request(tuple(int(t) for t in CAPTIONS[i]), "k") for i in range(PLANTED)]
    return draw(model, requests, SamplerConfig(temperature=0.0), runtime)


def looked_for(made: np.ndarray) -> tuple[Nearest, Nearest]:
    """(by tokens and features, by features alone) among the planted and the other pictures."""
    known = TOKENS[: PLANTED + OTHERS]
    nothing = np.zeros((len(known), 0), np.uint16)
    both = CopyDetector(decode(known), known).look(decode(made), made)
    return both, CopyDetector(decode(known), nothing).look(decode(made), nothing[: len(made)])


def test_an_over_fitted_model_is_found_out_in_tokens_and_in_features() -> None:
    made = drawn_after_training(np.arange(PLANTED + OTHERS))
    both, features = looked_for(made)
    for found in (both, features):
        assert found.copied.sum() == PLANTED
        assert found.source.tolist() == list(range(PLANTED)), "each is named"
    assert both.by_tokens.tolist() == list(range(PLANTED)) and not both.token_distance.any()
    assert (grid_runs_known(made, TOKENS[:PLANTED], 8) == 1.0).all()


def test_a_model_that_never_saw_them_copies_none_of_them() -> None:
    made = drawn_after_training(np.arange(PLANTED, PLANTED + OTHERS))
    for found in looked_for(made):
        assert not (found.copied & (found.source < PLANTED)).any()
    assert grid_runs_known(made, TOKENS[:PLANTED], 8).mean() < 0.5
