"""What 8-bit weights cost in quality: ``python tests/benchmarks/bench_int8.py [--seconds N]``.

A transformer (width 128, 4 layers) learns captioned scenes, 8x8 cells of one of 64 colours, and is measured on scenes
that it never saw, token by token through the decoder with each kind of weights: nats per image token, and the share of
cells of a greedy drawing that have the colour of the true picture. Then some scenes are drawn one at a time, token by
token and several tokens a pass (``lookahead``), in turns.
"""

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F

from dalle_model import sampling
from dalle_model.captions import CaptionTokenizer, train_bpe
from dalle_model.config import ModelConfig, SamplerConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle
from dalle_model.decoder import Decoder
from dalle_model.filters import best
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw_with
from dalle_model.scenes import render, scene_at
from dalle_model.token_batches import pad_text

RACES = (
    SamplerConfig(),
    SamplerConfig(temperature=0.5, guidance=1.5),
    SamplerConfig(temperature=0.9, top_p=0.9, guidance=2.0),
)
GRID, LEVELS, TEXT, HELDOUT, TRAIN = 8, 4, 24, 256, 4_000


def tokens_of(picture: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Mean colour of each cell, four levels per channel: uint8 [64, 64, 3] -> int64 [64]."""
    cells = picture.reshape(GRID, -1, GRID, picture.shape[1] // GRID, 3).mean((1, 3)).reshape(-1, 3)
    level = np.minimum(cells * LEVELS / 256, LEVELS - 1).astype(np.int64)
    return level @ np.array([1, LEVELS, LEVELS**2])


def data(count: int, seed: int) -> tuple[list[str], torch.Tensor]:
    """Captions and image tokens of scenes."""
    scenes = [scene_at(seed, i) for i in range(count)]
    return [s.caption for s in scenes], torch.from_numpy(np.stack([tokens_of(render(s.things, 64)) for s in scenes]))


def train(model: Dalle, text: torch.Tensor, image: torch.Tensor, seconds: float) -> int:
    """Plain training for a given time; the number of updates."""
    optim = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    end, steps = time.process_time() + seconds, 0
    dice = torch.Generator().manual_seed(0)
    while (left := (end - time.process_time()) / seconds) > 0:
        optim.param_groups[0]["lr"] = 2e-3 * min(1.0, (steps + 1) / 50, left + 0.02)
        rows = torch.randint(len(text), (32,), generator=dice)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            logits = model.image_logits(model(text[rows], image[rows]))
        loss = F.cross_entropy(logits.flatten(0, 1), image[rows].flatten())
        optim.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        steps += 1
    return steps


@torch.inference_mode()
def measure(decoder: Decoder, text: torch.Tensor, image: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """(nats per token of each picture, most probable tokens [n, N], share of right cells of a greedy drawing)."""
    asked = [Request(tuple(row[row > 0].tolist()), str(i)) for i, row in enumerate(text)]
    nats, top = [], []
    for start in range(0, len(text), decoder.rows):
        part = slice(start, start + decoder.rows)
        logits = [decoder.read([(r.prompt_ids, ()) for r in asked[part]]).clone()]
        logits += [decoder.step(image[part, p], p) for p in range(image.shape[1] - 1)]
        whole = torch.stack(logits, 1)
        nats.append(F.cross_entropy(whole.transpose(1, 2), image[part], reduction="none").mean(1))
        top.append(best(whole.flatten(0, 1)).view(len(whole), -1))
    drawn = draw_with(decoder, asked, SamplerConfig(temperature=0.0))
    return torch.cat(nats).numpy(), torch.cat(top).numpy(), (drawn == image.numpy()).mean(1)


def race(decoder: Decoder, asked: list[Request], sampler: SamplerConfig) -> str:
    """One line: seconds of pictures drawn alone, token by token and looking ahead, and tokens a pass."""
    slow = fast = passes = 0.0
    for request in asked:
        start = time.process_time()
        plain = sampling._Wave(decoder, [request], sampler).draw()
        middle = time.process_time()
        wave = sampling._Wave(decoder, [request], sampler)
        ahead = wave.draw_ahead()
        slow, fast, passes = slow + middle - start, fast + time.process_time() - middle, passes + wave.passes
        assert np.array_equal(plain, ahead)
    places = len(asked) * (GRID**2 - 1)
    return f"{slow:.2f} | {fast:.2f} | {slow / fast:.2f} | {places / passes:.1f}"


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120)
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    captions, image = data(TRAIN + HELDOUT, 0)
    bpe = CaptionTokenizer.from_json(train_bpe(captions[:TRAIN], 400))
    text = torch.from_numpy(pad_text([bpe.encode(c)[:TEXT] for c in captions], TEXT).astype(np.int64))
    shape = DalleShape(text_vocab=bpe.vocab_size, max_text_tokens=TEXT, image_vocab=LEVELS**3, grid=GRID)
    model = build_dalle(ModelConfig(dim=128, depth=4, heads=4), shape, Runtime().generator(0)).train()
    steps = train(model, text[:TRAIN], image[:TRAIN], seconds)
    model.eval()
    print(f"{steps} updates in {seconds:.0f} processor seconds; {HELDOUT} scenes not trained on")
    print("| weights | nats per token | difference, mean +- error | same best token | right cells, greedy |")
    print("|---|---|---|---|---|")
    first, decoders = None, {}
    for name, dtype, kind in (
        ("float32", torch.float32, "full"),
        ("bfloat16", torch.bfloat16, "full"),
        ("half", torch.float32, "half"),
        ("int8", torch.float32, "int8"),
    ):
        decoders[name] = Decoder(model, Runtime(dtype=dtype), kind)
        nats, top, right = measure(decoders[name], text[TRAIN:], image[TRAIN:])
        first = first or (nats, top)
        gap = nats - first[0]
        error = gap.std() / np.sqrt(len(gap))
        print(
            f"| {name} | {nats.mean():.4f} | {gap.mean():+.4f} +- {error:.4f} | {(top == first[1]).mean():.4f} | {right.mean():.4f} |"
        )
    asked = [Request(tuple(row[row > 0].tolist()), str(i)) for i, row in enumerate(text[TRAIN : TRAIN + 16])]
    print(
        "\n| one picture at a time | token by token, s | looking ahead, s | ratio | tokens a pass |\n|---|---|---|---|---|"
    )
    for name, decoder in decoders.items():
        for sampler in RACES:
            print(
                f"| {name}, temperature {sampler.temperature:g}, guidance {sampler.guidance:g} | {race(decoder, asked, sampler)} |"
            )


if __name__ == "__main__":
    main()
