"""Drawing 256 image tokens after 64 text tokens, against what users would otherwise take, interleaved in one process.

``python tests/benchmarks/bench_drawing.py [PICTURES] [--rounds N] [--trained FOLDER]``, one thread. Peers: transformers' GPT2 ``generate``
(float32 and bfloat16, dynamic and static cache), and dalle-pytorch as shipped where it can be imported
(``pip install --no-deps dalle-pytorch axial-positional-embedding rotary-embedding-torch ftfy wcwidth einops``; packages
that it imports and that are not on the timed path are stood in for). All have width 256, 8 layers, 8 heads, random
weights, and draw among the 64 most probable codes of 8,192.

Random weights are the worst case of drawing several tokens a pass: no guess is right, and the pace soon stops guessing.
With ``--trained FOLDER`` a model of the same shape is drawn from, too, that learnt packaged scenes for ``--updates`` of 8
pictures (120 take six minutes on one Zen 3 core); it is kept in the folder. What peers take does not depend on weights.

"operators" is the same decoder by torch's operators instead of compiled passes. Seconds are processor seconds of this
process: with one thread they are the wall clock of an idle machine, and other jobs on the cores disturb them little.
Judge by the ratios.
"""

import argparse
import contextlib
import importlib.machinery
import platform
import resource
import statistics
import sys
import time
import types
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from dalle_model.config import ModelConfig, SamplerConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle, load, save
from dalle_model.decoder import Decoder
from dalle_model.eager_steps import EagerSteps
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw_with
from dalle_model.scenes import render, scene_at
from dalle_model.token_batches import pad_text

DIM, DEPTH, HEADS, TEXT, GRID, WORDS, CODES, TOP = 256, 8, 8, 64, 16, 4096, 8192, 64
TOKENS = GRID**2
SAMPLER = SamplerConfig(top_k=TOP)
SAMPLERS = {
    "top-k 64": SAMPLER,
    "temperature 1": SamplerConfig(),
    "temperature 0.9, top-p 0.95": SamplerConfig(temperature=0.9, top_p=0.95),
    "temperature 0.9, top-p 0.95, guidance 2": SamplerConfig(temperature=0.9, top_p=0.95, guidance=2.0),
}


def random_model() -> Dalle:
    """All weights random: fresh ones are partly zero."""
    shape = DalleShape(text_vocab=WORDS, max_text_tokens=TEXT, image_vocab=CODES, grid=GRID)
    model = build_dalle(ModelConfig(dim=DIM, depth=DEPTH, heads=HEADS), shape, Runtime().generator(0)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.02 + (p.mean() > 0.5))
    return model


def scenes(first: int, count: int) -> tuple[list[tuple[int, ...]], torch.Tensor]:
    """Caption tokens (words, numbered as they are hashed) and codes of scenes: a cell's mean colour, 16 x 16 x 32 levels."""
    captions, codes = [], []
    for i in range(first, first + count):
        scene = scene_at(0, i)
        captions.append(tuple(1 + zlib.crc32(w.encode()) % (WORDS - 1) for w in scene.caption.split())[:TEXT])
        cells = render(scene.things, 4 * GRID).reshape(GRID, 4, GRID, 4, 3).mean((1, 3)).reshape(-1, 3)
        levels = np.array([16, 16, 32])
        level = np.minimum(cells * levels / 256, levels - 1).astype(np.int64)
        codes.append(level @ np.array([1, 16, 256]))
    return captions, torch.from_numpy(np.stack(codes))


def trained_model(folder: Path, updates: int, batch: int = 8) -> Dalle:
    """A model of the same shape that learnt scenes for some updates; read from ``folder`` where it was trained before."""
    if (folder / "config.json").exists():
        return load(folder)
    shape = DalleShape(text_vocab=WORDS, max_text_tokens=TEXT, image_vocab=CODES, grid=GRID)
    model = build_dalle(ModelConfig(dim=DIM, depth=DEPTH, heads=HEADS), shape, Runtime().generator(0)).train()
    optim = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    start = time.process_time()
    for step in range(updates):
        captions, image = scenes(step * batch, batch)
        text = torch.from_numpy(pad_text([list(c) for c in captions], TEXT).astype(np.int64))
        text[torch.rand(batch) < 0.1] = 0  # no caption, which guidance leads away from
        optim.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 30, 1.02 - step / updates)
        loss = F.cross_entropy(model.image_logits(model(text, image)).flatten(0, 1), image.flatten())
        optim.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        if step % 50 == 49 or step + 1 == updates:
            print(
                f"update {step + 1}: {loss.item():.2f} nats per token, {time.process_time() - start:.0f} s", flush=True
            )
    save(model.eval(), folder)
    return model


def ours(
    model: Dalle,
    pictures: int,
    dtype: torch.dtype,
    weights: str,
    sampler: SamplerConfig,
    steps: type[EagerSteps] | None,
) -> Callable[[], Any]:
    """A packed decoder; the prompt of all pictures is a scene that no model was trained on, and it is read once."""
    decoder = Decoder(model, Runtime(dtype=dtype), weights, steps=steps)
    asked = [Request(scenes(1_000_000, 1)[0][0], str(i)) for i in range(pictures)]

    def run() -> None:
        decoder.forget()  # a prompt that was read in the round before would be read for nothing
        draw_with(decoder, asked, sampler)

    return run


def weight_bytes(weights: str, dtype: torch.dtype) -> int:
    """Bytes of the layers and the output vectors: what one step must read at least."""
    shape = DalleShape(text_vocab=WORDS, max_text_tokens=TEXT, image_vocab=CODES, grid=GRID)
    model = build_dalle(ModelConfig(dim=DIM, depth=DEPTH, heads=HEADS), shape, Runtime().generator(0))
    values = sum(p.numel() for p in model.blocks.parameters()) + CODES * DIM
    return values * (1 if weights == "int8" else 2 if weights == "half" else dtype.itemsize)


def gpt2(pictures: int, dtype: torch.dtype, static: bool) -> Callable[[], Any]:
    """transformers' GPT2 over the joint vocabulary."""
    transformers.logging.set_verbosity_error()
    config = transformers.GPT2Config(
        vocab_size=WORDS + CODES, n_positions=TEXT + TOKENS + 1, n_embd=DIM, n_layer=DEPTH, n_head=HEADS,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval().to(dtype)
    text = torch.randint(1, WORDS, (pictures, TEXT))
    more = {"cache_implementation": "static"} if static else {}
    asked: dict[str, Any] = {"do_sample": True, "top_k": TOP, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    return lambda: model.generate(text, **asked, **more)


def dalle_pytorch(pictures: int) -> Callable[[], Any]:
    """Its ``generate_images`` with every default."""
    for name in ("omegaconf", "taming", "taming.models", "taming.models.vqgan", "youtokentome",
                 "torchvision", "torchvision.transforms"):  # fmt: skip
        with contextlib.suppress(ImportError):
            stub = _Stub(name)
            stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules.setdefault(name, stub)
    packages = types.ModuleType("pkg_resources")
    packages.get_distribution = lambda _: types.SimpleNamespace(version="0")  # type: ignore[attr-defined]
    sys.modules.setdefault("pkg_resources", packages)
    import dalle_pytorch.dalle_pytorch as theirs  # type: ignore[import-not-found]

    vae = theirs.DiscreteVAE(image_size=GRID * 8, num_layers=3, num_tokens=CODES, codebook_dim=64, hidden_dim=16)
    model = theirs.DALLE(
        dim=DIM, vae=vae, num_text_tokens=WORDS, text_seq_len=TEXT, depth=DEPTH, heads=HEADS, dim_head=DIM // HEADS
    ).eval()
    text = torch.randint(1, WORDS, (pictures, TEXT))
    return lambda: model.generate_images(text)


class _Stub(types.ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def gemm_gflops(dtype: torch.dtype) -> float:
    """GFLOP per processor second of a large square product: the limit of this machine."""
    a, b = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
    a @ b
    start = time.process_time()
    for _ in range(10):
        a @ b
    return 10 * 2 * 1024**3 / (time.process_time() - start) / 1e9


def read_gb_per_s() -> float:
    """GB per processor second of summing 256 MB: what weights that fit no cache are read at."""
    block = torch.ones(1 << 26)
    block.sum()
    start = time.process_time()
    for _ in range(4):
        block.sum()
    return 4 * block.nbytes / (time.process_time() - start) / 1e9


def limit_s(pictures: int, gflops: float) -> float:
    """Seconds of the multiplications with the weights alone, two operations a weight and token."""
    return 2 * weight_bytes("int8", torch.int8) * TOKENS * pictures / gflops / 1e9


def our_makers(n: int, folder: Path | None, updates: int) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Ways to draw n pictures by name: of random weights, and of trained ones where there is a folder for them."""
    kinds = {"f32": (torch.float32, "full"), "half": (torch.float32, "half"), "int8": (torch.float32, "int8")}
    random = random_model()
    makers: dict[str, Callable[[], Callable[[], Any]]] = {}
    for kind, (dtype, weights) in kinds.items():
        for way, steps in (("", None), (", operators", EagerSteps)):
            makers[f"random {kind}{way}"] = partial(ours, random, n, dtype, weights, SAMPLER, steps)
    if folder is not None:
        trained = trained_model(folder, updates)
        for kind, (dtype, weights) in kinds.items():
            for name, sampler in SAMPLERS.items():
                makers[f"trained {kind}, {name}"] = partial(ours, trained, n, dtype, weights, sampler, None)
        makers["trained int8, top-k 64, operators"] = partial(
            ours, trained, n, torch.float32, "int8", SAMPLER, EagerSteps
        )
    return makers


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures", type=int, nargs="?", default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="gpt2 f32,gpt2 f32 static,gpt2 bf16,dalle-pytorch")
    parser.add_argument("--ours", default="", help="rows that begin so, divided by commas; empty = all")
    parser.add_argument("--trained", type=Path, help="folder of the trained model")
    parser.add_argument("--updates", type=int, default=120)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    f32, bf16, n = torch.float32, torch.bfloat16, given.pictures
    makers: dict[str, Callable[[], Callable[[], Any]]] = {
        "gpt2 f32": lambda: gpt2(n, f32, False),
        "gpt2 f32 static": lambda: gpt2(n, f32, True),
        "gpt2 bf16": lambda: gpt2(n, bf16, False),
        "dalle-pytorch": lambda: dalle_pytorch(n),
    }
    makers = {name: make for name, make in makers.items() if name in given.peers.split(",")}
    makers |= {
        name: make
        for name, make in our_makers(n, given.trained, given.updates).items()
        if name.startswith(tuple(given.ours.split(",")))
    }
    runs, first_s = {}, {}
    for name, make in makers.items():
        start = time.process_time()
        runs[name] = make()
        with torch.inference_mode():
            if n == 1 and name.startswith("random"):  # packed, measured and drawn, from weights in memory
                runs[name]()
                first_s[name] = time.process_time() - start
    took: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(given.rounds + 1):  # the first warms up
        for name, run in runs.items():
            if name == "dalle-pytorch" and number != 1:  # minutes
                continue
            start = time.process_time()
            with torch.inference_mode():
                run()
            if number:
                took[name].append(time.process_time() - start)
    print(f"{platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, 1 thread")
    print(f"{n} pictures; GEMM 1024: f32 {gemm_gflops(f32):.0f}, bf16 {gemm_gflops(bf16):.0f} GFLOP/s")
    print(
        f"peak memory of this process, peers included: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"
    )
    for name, s in first_s.items():
        print(f"time to the first picture, packing included: {name} {s:.2f} s")
    read_gbs = read_gb_per_s()
    print(f"reading {read_gbs:.0f} GB/s; limits of a picture by it, s:", end=" ")
    kinds = {"float32": ("full", f32), "half": ("half", f32), "int8": ("int8", f32)}
    print(", ".join(f"{k} {TOKENS * weight_bytes(*v) / read_gbs / 1e9:.3f}" for k, v in kinds.items()))
    print(f"limit of {n} pictures by the products in float32, s: {limit_s(n, gemm_gflops(f32)):.3f}")
    middle = {name: statistics.median(values) for name, values in took.items()}
    peers = [name for name in runs if name.startswith(("gpt2", "dalle"))]
    print(f"| drawn by | s | tokens/s | pictures/s | {' | '.join(f'{name}, times' for name in peers)} |")
    print("|---|---|---|---|" + "---|" * len(peers))
    for name, s in middle.items():
        ratios = " | ".join(f"{middle[peer] / s:.2f}" for peer in peers)
        print(f"| {name} | {s:.3f} | {n * TOKENS / s:.0f} | {n / s:.2f} | {ratios} |")


if __name__ == "__main__":
    main()
