"""Pictures to ids: ours against dalle-pytorch and FLAVA, and the encode step against its bare encoder.

    pip install --no-deps --target PEERS dalle-pytorch==1.6.6 axial-positional-embedding rotary-embedding-torch einops ftfy wcwidth
    PYTHONPATH=PEERS python tests/benchmarks/bench_encode.py [peers|flava|step]

One thread, CPU seconds of this process, variants interleaved round by round, the fastest round of each: a machine that
others use too stretches the wall clock, and the ratio of CPU seconds hardly.
"""

import copy
import importlib.machinery
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.config import CurateConfig, EncodeConfig, IngestConfig, OptimConfig, TokenizerConfig
from dalle_model.reference_weights import from_flava_codebook
from dalle_model.runtime import Runtime
from dalle_model.tokenizers.dvae import DvaeTokenizer, argmax_codes
from dalle_model.tokenizers.encoding import prepared
from dalle_model.tokenizers.registry import build_tokenizer
from tasks.fit_tokenizer import encode_ids
from tasks.stages import ENCODE, FIT_TOKENIZER
from tasks.step import load_dotted

ROUNDS = 4
PICTURES = 4096  # of the encode step: two shards
F32, BF16 = Runtime(), Runtime(dtype=torch.bfloat16)


def rounds(variants: dict[str, Callable[[], Any]], pictures: int) -> dict[str, float]:
    """Least CPU seconds per picture of each variant."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with torch.inference_mode():
        for run in variants.values():
            run()
        for _ in range(ROUNDS):
            for name, run in variants.items():
                started = time.process_time()
                run()
                seconds[name].append((time.process_time() - started) / pictures)
    return {name: min(found) for name, found in seconds.items()}


def show(title: str, seconds: dict[str, float]) -> None:
    """One line per variant, each against the first."""
    print(f"\n{title}\n")
    first = next(iter(seconds.values()))
    for name, value in seconds.items():
        print(f"| {name} | {1 / value:.1f} images per CPU s | {first / value:.2f} x |", flush=True)


def ours(config: TokenizerConfig, images: torch.Tensor, runtime: Runtime) -> Callable[[], Any]:
    """``encode`` of a tokenizer with fresh weights, prepared."""
    return encoder(build_tokenizer(config, Runtime().generator(0)).eval(), images, runtime)


def encoder(tokenizer: Any, images: torch.Tensor, runtime: Runtime) -> Callable[[], Any]:
    """``encode`` of a prepared tokenizer, as the step calls it."""
    ready = prepared(tokenizer, runtime)

    def run() -> torch.Tensor:
        with runtime.autocast():
            return ready.encode(images)

    return run


class _Stub(types.ModuleType):
    """Stands for a package that dalle-pytorch imports and that nothing here calls."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def discrete_vae() -> Any:
    """dalle-pytorch's DiscreteVAE class."""
    import transformers  # noqa: F401 - before the stubs, so that it does not take one for the real package

    for name in (
        "torchvision",
        "torchvision.transforms",
        "taming",
        "taming.models",
        "taming.models.vqgan",
        "omegaconf",
        "youtokentome",
        "pkg_resources",
    ):
        module = sys.modules.setdefault(name, _Stub(name))
        if isinstance(module, _Stub):
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules["pkg_resources"].get_distribution = lambda name: types.SimpleNamespace(version="0")  # type: ignore[attr-defined]
    from dalle_pytorch.dalle_pytorch import DiscreteVAE  # type: ignore[import-not-found]

    return DiscreteVAE


def against_dalle_pytorch() -> None:
    """128 px, 16 x 16 grid, 8192 codes."""
    torch.manual_seed(0)
    images = torch.rand(8, 3, 128, 128)
    peer = discrete_vae()(
        image_size=128, num_layers=3, num_tokens=8192, codebook_dim=256, num_resnet_blocks=1, hidden_dim=64
    ).eval()
    body = copy.deepcopy(peer.encoder[:-1]).to(memory_format=torch.channels_last).bfloat16()
    head = peer.encoder[-1]

    def same_network() -> torch.Tensor:
        features = body((images * 2 - 1).bfloat16().contiguous(memory_format=torch.channels_last))
        rows = features.permute(0, 2, 3, 1).flatten(0, 2)
        return argmax_codes(rows, head.weight.flatten(1), head.bias).view(len(images), -1)

    plain = peer.get_codebook_indices(images)
    print(f"ids of the same network that agree with the peer's: {(same_network() == plain).float().mean():.4f}")
    vq = TokenizerConfig(kind="vq", image_px=128, num_codes=8192, width=64)
    fsq = TokenizerConfig(kind="fsq", image_px=128, fsq_levels=(8, 8, 8, 16), width=64)
    variants = {
        "dalle-pytorch get_codebook_indices, float32": lambda: peer.get_codebook_indices(images),
        "its network by our path, bfloat16": same_network,
        "ours vq, float32": ours(vq, images, F32),
        "ours vq, bfloat16": ours(vq, images, BF16),
        "ours fsq, float32": ours(fsq, images, F32),
        "ours fsq, bfloat16": ours(fsq, images, BF16),
    }
    show("128 px, 8192 codes, 16 x 16 grid, batch 8", rounds(variants, len(images)))


def against_flava() -> None:
    """OpenAI's shape at 112 px."""
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    torch.manual_seed(0)
    peer = FlavaImageCodebook(FlavaImageCodebookConfig()).eval()
    mine = DvaeTokenizer(TokenizerConfig(kind="dvae", image_px=112, num_codes=8192, width=256))
    mine.encoder = from_flava_codebook(peer)
    images = torch.rand(4, 3, 112, 112)
    mapped = 0.8 * images + 0.1
    variants = {
        "FlavaImageCodebook, float32": lambda: peer.get_codebook_indices(mapped),
        "ours, float32": encoder(mine, images, F32),
        "ours, bfloat16": encoder(mine, images, BF16),
    }
    found = rounds(variants, len(images))
    with torch.inference_mode():
        plain = peer.get_codebook_indices(mapped).flatten(1)
        for name in ("ours, float32", "ours, bfloat16"):
            print(f"ids of {name} that agree: {(variants[name]() == plain).float().mean():.4f}")
    show("OpenAI's encoder, 112 px, batch 4", found)


def whole_step() -> None:
    """The encode step on the quick start's tokenizer and on a wider one."""
    pictures = {f"{n}.jpg": encoded(photo(96, 96, seed=n), "JPEG", quality=90) for n in range(200)}
    names = list(pictures)
    for width in (64, 128):
        with tempfile.TemporaryDirectory() as scratch:
            home = Path(scratch)
            rows = ({"file_name": names[n % 200], "text": f"a picture of thing {n}"} for n in range(PICTURES))
            write_folder(home / "set", pictures, rows)
            data = Data(home, 1)
            curated = data.curate(
                CurateConfig(max_captions_per_picture=0, valid_share=0.0),
                data.ingest(IngestConfig(source=f"imagefolder:{home}/set")),
            )
            optim = OptimConfig(steps=1, batch_size=8)
            config = TokenizerConfig(width=width, min_perplexity_share=0, optim=optim)
            fitting = data.job(FIT_TOKENIZER, config, {"curated": curated})
            tokenizer = fitting.manifest(load_dotted(FIT_TOKENIZER.work)(fitting), {})
            data.store.commit(tokenizer)
            inputs = {"curated": curated, "tokenizer": tokenizer}
            job = data.job(ENCODE, EncodeConfig(), inputs)
            runtime = job.runtime
            ready = prepared(build_tokenizer(config).eval(), runtime)
            images = np.random.default_rng(0).integers(0, 256, (512, 64, 64, 3), dtype=np.uint8)
            encode_ids(ready, images, runtime)
            started, cpu = time.perf_counter(), time.process_time()
            encode_ids(ready, images, runtime)
            bare, bare_cpu = (time.perf_counter() - started) / 512, (time.process_time() - cpu) / 512
            from tasks.encode_images import work

            started, cpu = time.perf_counter(), time.process_time()
            work(job)
            step, step_cpu = ((time.perf_counter() - started) / PICTURES, (time.process_time() - cpu) / PICTURES)
            print(
                f"| encode step, fsq width {width}, 64 px, {PICTURES} pictures, {runtime.dtype} | bare {1 / bare:.0f} images/s, step {1 / step:.0f} ({bare / step:.2f} x) "
                f"| per CPU s: bare {1 / bare_cpu:.0f}, step {1 / step_cpu:.0f} ({bare_cpu / step_cpu:.2f} x) |",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or ["peers", "flava", "step"]
    print(f"torch {torch.__version__}, 1 thread", flush=True)
    for part, run in (("peers", against_dalle_pytorch), ("flava", against_flava), ("step", whole_step)):
        if part in wanted:
            run()
