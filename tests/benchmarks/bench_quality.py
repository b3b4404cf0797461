"""Quality at equal minutes.

``python tests/benchmarks/bench_quality.py table STORE``: one row per evaluation in a store, so that runs with other
settings of ``dalle run quickstart --set ...`` stand side by side.

``python tests/benchmarks/bench_quality.py peer STORE OUT --tokenizer-cpu-s N --cpu-s M``: dalle-pytorch's DiscreteVAE
and DALLE (installed by hand, with its defaults where it has some; its script's temperature stays at 1 in runs this
short) trained for so many CPU seconds on the curated pictures of the newest evaluation in the store, and measured on its
captions by the same rules; a sheet is written to OUT.
"""

import argparse
import io
import sys
import time
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dalle_model.captions import CaptionTokenizer
from dalle_model.distances import frechet
from dalle_model.features import RandomFeatures
from dalle_model.images import stack_squares, to_float, to_uint8
from dalle_model.intervals import wilson_interval
from dalle_model.metrics import halved, psnr, recognised, ssim
from dalle_model.sheets import Section, sectioned_sheet
from flows.inspection import all_manifests
from tasks.artifacts import Manifest
from tasks.pictures import spread
from tasks.settings import Settings
from tasks.step import open_store

IntArray = npt.NDArray[np.int64]
FIGURES = {
    "recognised": "recognisability",
    "held out": "recognisability_heldout",
    "PSNR": "reconstruction_psnr",
    "SSIM": "reconstruction_ssim",
    "perplexity": "code_perplexity_of_originals",
    "Frechet, random features": "frechet_random",
    "bits per pixel, held out": "bits_per_pixel_chain_heldout",
}


def table(uri: str) -> None:
    """Print one Markdown row per evaluation, the oldest first."""
    store = open_store(Settings(store=uri))
    known = {m.fingerprint: m for m in all_manifests(store)}
    print(f"| tokenizer | transformer | {' | '.join(FIGURES)} |\n|---|---|{'---|' * len(FIGURES)}")
    for found in [m for m in known.values() if m.step == "evaluate"]:
        model = _input(known, found, "model")
        if "tokens" not in {used.name for used in model.inputs}:
            continue  # a generator that reads no prompt
        tokenizer = _input(known, _input(known, model, "tokens"), "tokenizer")
        shape, fit = tokenizer.config["config"], model.config["config"]
        critic = " + critic" if shape["adversarial_weight"] else ""
        about = f"{shape['kind']}{critic} ({shape['optim']['steps']}) | {fit['model']['mode']} ({fit['train']['optim']['steps']})"
        cells = [found.stats.get(name) for name in FIGURES.values()]
        print(f"| {about} | {' | '.join('' if c is None else f'{c:.4g}' for c in cells)} |")


def _input(known: dict[str, Manifest], of: Manifest, name: str) -> Manifest:
    return known[next(used.fingerprint for used in of.inputs if used.name == name)]


# --- the peer ---------------------------------------------------------------------------------------------------------


def peer_module() -> Any:
    """``dalle_pytorch.dalle_pytorch`` without the packages it imports and does not need here."""

    class Stub(types.ModuleType):
        __path__: ClassVar[list[str]] = []

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {"__init__": lambda self, *a, **k: None})

    import transformers  # noqa: F401  # before the stubs: it must not meet them

    for name in ("omegaconf", "taming", "taming.models", "taming.models.vqgan", "youtokentome", "torchvision"):
        for part in (name, f"{name}.transforms"):
            stub = Stub(part)
            stub.__spec__ = ModuleSpec(part, None)
            sys.modules.setdefault(part, stub)
    resources = types.ModuleType("pkg_resources")
    resources.get_distribution = lambda name: types.SimpleNamespace(version="0")  # type: ignore[attr-defined]
    sys.modules.setdefault("pkg_resources", resources)
    import dalle_pytorch.dalle_pytorch as module

    return module


class Pictures:
    """The pairs that the newest evaluation of a store was made with, and those that it drew.

    images: uint8 [n, px, px, 3] of training pairs in the order of their captions, then the held-out ones.
    """

    def __init__(self, uri: str) -> None:
        store = open_store(Settings(store=uri))
        known = {m.fingerprint: m for m in all_manifests(store)}
        newest = [m for m in known.values() if m.step == "evaluate"][-1]
        tokens = _input(known, _input(known, newest, "model"), "tokens")
        curated, self.px = (
            _input(known, tokens, "curated"),
            int(_input(known, tokens, "tokenizer").config["config"]["image_px"]),
        )
        shards = _input(known, curated, "pairs").objects_of("pairs")
        rows = pa.concat_tables([pq.read_table(io.BytesIO(store.read(o))) for o in curated.objects_of("curated")])
        rows = rows.sort_by([("caption", "ascending"), ("id", "ascending")])
        parts = [rows.filter(pa.compute.equal(rows["split"], split)) for split in ("train", "heldout")]
        encoded = [pq.read_table(io.BytesIO(store.read(o)), columns=["image"])["image"] for o in shards]
        both = pa.concat_tables(parts)
        self.images = stack_squares(
            [encoded[s][r].as_py() for s, r in zip(both["shard"].to_pylist(), both["row"].to_pylist(), strict=True)],
            self.px,
        )
        self.captions: list[str] = both["caption"].to_pylist()
        self.train = parts[0].num_rows
        self.words = CaptionTokenizer.from_json(store.read(tokens.object_of("bpe")))
        self.text_len = int(tokens.config["config"]["max_text_tokens"])
        config = newest.config["config"]
        self._chosen = spread(self.train, config["num_captions"])
        self._held = self.train + spread(len(self.images) - self.train, config["num_heldout"])

    def batch(self, step: int, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures float32 [size, 3, px, px] in [0, 1] and text int64 [size, text_len], drawn at random."""
        rows = np.random.default_rng((0, step)).integers(0, self.train, size)
        return to_float(self.images[rows]), self.text([self.captions[row] for row in rows])

    def text(self, captions: list[str]) -> torch.Tensor:
        """Token ids int64 [n, text_len], 0 where the text has ended."""
        ids = [self.words.encode(caption)[: self.text_len] for caption in captions]
        return torch.tensor([row + [0] * (self.text_len - len(row)) for row in ids])

    def groups(self) -> Iterator[tuple[str, IntArray, IntArray]]:
        """(name, rows that are drawn, rows among which the nearest is looked for)."""
        train = np.arange(self.train)
        yield "training captions", self._chosen, train
        if len(self._held):
            yield "held-out compositions", self._held, np.concatenate([train, self._held])


def _updates(cpu_s: float) -> Iterator[int]:
    """Numbers of updates until this process has spent so many CPU seconds on them."""
    started, step = time.process_time(), 0
    while time.process_time() - started < cpu_s:
        yield step
        step += 1
    print(f"{step} updates, {time.process_time() - started:.0f} CPU s", flush=True)


def peer(uri: str, out: Path, tokenizer_cpu_s: float, cpu_s: float) -> None:
    """Train and measure; prints updates and figures."""
    data = Pictures(uri)
    module = peer_module()
    torch.manual_seed(0)
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    vae = module.DiscreteVAE(
        image_size=data.px, num_layers=3, num_tokens=1024, codebook_dim=256, hidden_dim=64, num_resnet_blocks=1
    )
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    for step in _updates(tokenizer_cpu_s):
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = vae(data.batch(step)[0], return_loss=True, return_recons=False, temp=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    vae.eval()
    dalle = module.DALLE(
        dim=256,
        vae=vae,
        num_text_tokens=data.words.vocab_size,
        text_seq_len=data.text_len,
        depth=6,
        heads=4,
        dim_head=64,
    )
    optimizer = torch.optim.Adam([p for p in dalle.parameters() if p.requires_grad], lr=4.5e-4)
    for step in _updates(cpu_s):
        images, text = data.batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = dalle(text, images, return_loss=True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dalle.parameters(), 0.5)
        optimizer.step()
    dalle.eval()
    measure(data, vae, dalle, out)


@torch.inference_mode()
def measure(data: "Pictures", vae: Any, dalle: Any, out: Path) -> None:
    """The figures of ``table`` that a peer has, by the rules of the evaluation, and a sheet."""
    usage: set[int] = set()
    sections = []
    for name, rows, reference in data.groups():
        truth = to_float(data.images[rows])
        text = torch.cat([data.text([data.captions[row]]) for row in rows])
        made = torch.cat([dalle.generate_images(part, filter_thres=0.9) for part in text.split(16)]).clamp(0, 1)
        codes = vae.get_codebook_indices(truth * 2 - 1 if vae.normalization is None else truth)
        usage |= set(codes.flatten().tolist())
        rebuilt = vae.decode(codes)
        if vae.normalization is not None:
            rebuilt, made = (x * 0.5 + 0.5 for x in (rebuilt, made))
        rebuilt, made = rebuilt.clamp(0, 1), made.clamp(0, 1)
        own = torch.tensor([int(np.flatnonzero(reference == row)[0]) for row in rows])
        hits = recognised(halved(made), halved(to_float(data.images[reference])), own)
        low, high = wilson_interval(float(hits.sum()), len(hits))[:2]
        again = recognised(halved(rebuilt), halved(to_float(data.images[reference])), own).double().mean()
        network = RandomFeatures()
        print(
            f"{name}: recognised {hits.double().mean():.3f} ({low:.2f} to {high:.2f}), reconstructions {again:.3f}, "
            f"PSNR {psnr(rebuilt, truth).mean():.2f}, SSIM {ssim(rebuilt, truth).mean():.3f}, "
            f"Frechet {frechet(network.of(truth), network.of(made)):.4f}, codes used {len(usage)}"
        )
        line = np.full((2, data.px, 3), 255, np.uint8)
        tiles = [np.concatenate([a, line, b]) for a, b in zip(data.images[rows], to_uint8(made), strict=True)]
        sections.append(Section(name, tiles, [data.captions[row] for row in rows]))
    out.write_bytes(sectioned_sheet(sections, columns=16, tile_px=(64, 130), max_bytes=400_000))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table").add_argument("store")
    of_peer = commands.add_parser("peer")
    of_peer.add_argument("store")
    of_peer.add_argument("out", type=Path)
    of_peer.add_argument("--tokenizer-cpu-s", type=float, default=600)
    of_peer.add_argument("--cpu-s", type=float, default=1200)
    given = parser.parse_args()
    if given.command == "table":
        table(given.store)
    else:
        peer(given.store, given.out, given.tokenizer_cpu_s, given.cpu_s)


if __name__ == "__main__":
    main()
