"""Training step against the peers, one interleaved run: ``python tests/benchmarks/bench_train.py [S|M] [ROUNDS] [THREADS]``.

Peers: transformers' GPT2LMHeadModel (sdpa) and dalle-pytorch's DALLE, both under bf16 autocast with fused AdamW, as a
user would write it. dalle-pytorch is not a dependency; without it (``pip install --no-deps dalle-pytorch
axial-positional-embedding rotary-embedding-torch einops``, on the path) its row is left out. Ours is a whole update of
``dalle_model.training``: batch, loss, backward, clipping, optimiser.

Every round runs each variant once, so noise hits all alike; a ratio is the median over rounds of the ratio in a round.
With THREADS 1 the seconds are those of the thread's CPU, which other programs on the machine disturb far less.
Start it with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 to have the pages kept as our launcher does.
"""

import importlib.machinery
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from unittest.mock import MagicMock

import numpy as np
import torch

from dalle_model.config import ModelConfig, OptimConfig, TrainConfig
from dalle_model.dalle import DalleShape, build_dalle
from dalle_model.objectives import DalleObjective
from dalle_model.runtime import Runtime
from dalle_model.throughput import matmul_flops
from dalle_model.token_batches import TokenRows
from dalle_model.training import _start, _update

DIM, DEPTH, HEADS, BATCH, TEXT_VOCAB = 256, 8, 8, 16, 4096
SIZES = {"S": (32, 8, 1024), "M": (64, 16, 8192)}  # text positions, image grid, image vocabulary


def ours(size: str, **model: object) -> Callable[[], object]:
    """One update of our loop."""
    text, grid, vocab = SIZES[size]
    numbers = np.random.default_rng(0)
    rows = TokenRows(
        numbers.integers(1, TEXT_VOCAB, (256, text)).astype(np.uint16),
        numbers.integers(0, vocab, (256, grid**2)).astype(np.uint16),
        np.ones(256, np.float32),
    )
    runtime = Runtime(dtype=torch.bfloat16)
    shape = DalleShape(text_vocab=TEXT_VOCAB, max_text_tokens=text, image_vocab=vocab, grid=grid)
    config = ModelConfig.model_validate({"dim": DIM, "depth": DEPTH, "heads": HEADS, **model})
    optim = OptimConfig(batch_size=BATCH, lr=1e-4, warmup_steps=0, schedule="constant")
    network = build_dalle(config, shape, runtime.generator(1))
    objective = DalleObjective(network, rows, TrainConfig(optim=optim, condition_dropout=0.0), runtime)
    run = _start(objective, optim, runtime, None)
    steps = iter(range(10**9))
    return lambda: _update(objective, run, optim, runtime, next(steps))


def _peer(network: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4, fused=True)
    network.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def gpt2(size: str) -> Callable[[], object]:
    """transformers' GPT-2 over one joint vocabulary."""
    from transformers import GPT2Config, GPT2LMHeadModel

    text, grid, vocab = SIZES[size]
    ids = torch.cat(
        [torch.randint(0, TEXT_VOCAB, (BATCH, text)), torch.randint(0, vocab, (BATCH, grid**2)) + TEXT_VOCAB], 1
    )
    config = GPT2Config(
        vocab_size=TEXT_VOCAB + vocab,
        n_positions=ids.shape[1],
        n_embd=DIM,
        n_layer=DEPTH,
        n_head=HEADS,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        attn_implementation="sdpa",
    )
    network = GPT2LMHeadModel(config)
    return _peer(network, lambda: network(ids, labels=ids).loss)


def dalle_pytorch(size: str) -> Callable[[], object]:
    """dalle-pytorch's DALLE with its defaults; what it imports and does not use here is stubbed."""
    import transformers  # noqa: F401  before the stubs: it looks for torchvision
    from transformers import BertTokenizer  # noqa: F401

    for name in (
        "omegaconf",
        "taming",
        "taming.models",
        "taming.models.vqgan",
        "youtokentome",
        "torchvision",
        "torchvision.transforms",
        "pkg_resources",
    ):
        if name not in sys.modules:
            module = MagicMock(spec=types.ModuleType(name))
            module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
            module.get_distribution = lambda _: types.SimpleNamespace(version="0")
            module.VQModel = module.GumbelVQ = module.OmegaConf = module.transforms = type("Absent", (), {})
            sys.modules[name] = module
    from dalle_pytorch.dalle_pytorch import DALLE, DiscreteVAE

    text_len, grid, vocab = SIZES[size]
    vae = DiscreteVAE(image_size=grid * 8, num_layers=3, num_tokens=vocab, codebook_dim=64, hidden_dim=16)
    network = DALLE(
        dim=DIM,
        vae=vae,
        num_text_tokens=TEXT_VOCAB,
        text_seq_len=text_len,
        depth=DEPTH,
        heads=HEADS,
        dim_head=DIM // HEADS,
    )
    text, image = torch.randint(1, TEXT_VOCAB, (BATCH, text_len)), torch.randint(0, vocab, (BATCH, grid**2))
    return _peer(network, lambda: network(text, image, return_loss=True))


def needed_flops(size: str) -> float:
    """FLOPs that an update cannot do without: trunk of 12 dim² weights, causal half of attention, each head on its own."""
    text, grid, vocab = SIZES[size]
    image = grid**2
    length = text + image
    products = length * 12 * DIM * DIM * DEPTH + text * DIM * TEXT_VOCAB + image * DIM * vocab
    return 6 * BATCH * (products + length * length * DIM * DEPTH)


def main(size: str, rounds: int, threads: int) -> None:
    """One line per variant."""
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    torch.manual_seed(0)
    variants: dict[str, Callable[[], object]] = {"ours": ours(size)}
    variants["transformers GPT2LMHeadModel bf16"] = gpt2(size)
    try:
        variants["dalle-pytorch bf16"] = dalle_pytorch(size)
    except ImportError as error:
        print(f"left out: {error}")
    times: dict[str, list[float]] = {name: [] for name in variants}
    limits = []
    for number in range(rounds + 1):
        for name, step in variants.items():
            started = clock()
            step()
            if number:
                times[name].append(clock() - started)
        limits.append(matmul_flops(Runtime(dtype=torch.bfloat16), repeats=2))
    text, grid, _ = SIZES[size]
    tokens, limit = BATCH * (text + grid**2), max(limits)
    kept = os.environ.get("MALLOC_MMAP_MAX_") == "0"
    print(
        f"size {size}, {tokens} tokens per update, {torch.get_num_threads()} threads{' (CPU seconds)' if threads == 1 else ''}, {platform.machine()}, torch "
        f"{torch.__version__}, pages kept: {kept}, bf16 products {limit / 1e9:.0f} GFLOP/s, {rounds} rounds"
    )
    print(
        "| variant | ms (median) | ms (best) | tokens/s | needed MFU | ours is faster by |\n|---|---|---|---|---|---|"
    )
    for name, taken in times.items():
        middle = statistics.median(taken)
        ratio = statistics.median(t / own for t, own in zip(taken, times["ours"], strict=True))
        mfu = needed_flops(size) / middle / limit
        print(
            f"| {name} | {middle * 1e3:.0f} | {min(taken) * 1e3:.0f} | {tokens / middle:,.0f} | {mfu:.0%} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    main(given.get(0, "M"), int(given.get(1, 7)), int(given.get(2, len(os.sched_getaffinity(0)))))
