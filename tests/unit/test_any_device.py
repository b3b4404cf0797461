"""Training, drawing and measuring on a device whose tensors cannot be mixed with the CPU's, with the CPU's results."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.in_process import steps_in_this_process
from support.pretend_gpu import OnDevice, pretend_gpu
from support.tiny import chain, quietly, tiny_config
from support.tiny_training import SHAPE, token_rows

from dalle_model.config import GeneratorConfig, ModelConfig, OptimConfig, SamplerConfig, TokenizerConfig, TrainConfig
from dalle_model.dalle import Dalle, build_dalle
from dalle_model.describing import continue_captions, describe, score_captions
from dalle_model.explaining import explain
from dalle_model.features import RandomFeatures, TokenizerFeatures
from dalle_model.likelihood import PixelLikelihood, sequence_nats
from dalle_model.objectives import Objective
from dalle_model.perceptual import fixed_distance
from dalle_model.picture_objectives import generator_objective, tokenizer_objective
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw
from dalle_model.text_objective import transformer_objective
from dalle_model.tokenizers.registry import build_tokenizer
from dalle_model.training import fit
from dalle_model.unprompted import bits_per_pixel_bound, build_generator, draw_pictures, noise_of
from tasks import devices, live
from tasks.plain import bind
from tasks.settings import Settings


@pytest.fixture
def gpu() -> Iterator[Runtime]:
    with pretend_gpu() as device:
        yield Runtime(device=device, seed=3)


CPU = Runtime(seed=3)


def optim(**changes: Any) -> OptimConfig:
    values = {"steps": 3, "batch_size": 6, "warmup_steps": 1, "ema": 0.5, "log_every": 1, "checkpoint_every": 2}
    return OptimConfig.model_validate(values | changes)


def pictures(count: int = 12) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (count, 3, 16, 16), np.uint8)


def model(**changes: Any) -> Dalle:
    config = ModelConfig.model_validate({"dim": 32, "depth": 2, "heads": 2} | changes)
    return build_dalle(config, SHAPE, Runtime().generator(1))


def transformer(runtime: Runtime, optim: OptimConfig, network: dict[str, Any], **changes: Any) -> Objective:
    config = TrainConfig.model_validate({"optim": optim, "condition_dropout": 0.3} | changes)
    return transformer_objective(model(**network), token_rows(), config, runtime)


SMALL: dict[str, Any] = {"image_px": 16, "width": 8, "blocks_per_group": 1}
FSQ = SMALL | {"downsampling": 4, "kind": "fsq", "fsq_levels": (8, 5, 4)}
CRITIC = {"critic_width": 8, "adversarial_weight": 0.8, "adversarial_start": 0.3, "perceptual_weight": 0.5}


def tokenizer(runtime: Runtime, optim: OptimConfig, **changes: Any) -> Objective:
    config = TokenizerConfig.model_validate(FSQ | {"optim": optim} | changes)
    return tokenizer_objective(
        build_tokenizer(config, Runtime().generator(1)), pictures(), config, runtime, fixed_distance()
    )


def generator(runtime: Runtime, optim: OptimConfig, **changes: Any) -> Objective:
    config = GeneratorConfig.model_validate(SMALL | {"latent_dim": 8, "optim": optim} | changes)
    return generator_objective(build_generator(config, Runtime().generator(1)), pictures(), config, runtime)


STEADY = {"upsampling": "resize", "critic_norm": "spectral", "critic_loss": "hinge", "critic_shift": 0.125}
DATA_START = {"kind": "dvae", "num_codes": 32, "likelihood": "normal", "start": "data"}
OBJECTIVES: dict[str, tuple[Callable[[Runtime, OptimConfig], Objective], dict[str, Any]]] = {
    "modern": (lambda r, o: transformer(r, o, {"dropout": 0.1}, token_swap=0.1), {"optimizer": "muon"}),
    "both directions": (lambda r, o: transformer(r, o, {}, image_first_share=0.5), {"micro_batch_size": 4}),
    "paper": (lambda r, o: transformer(r, o, {"mode": "paper"}), {"activation_checkpointing": True}),
    "text": (lambda r, o: transformer(r, o, {}, objective="text"), {}),
    "fsq": (lambda r, o: tokenizer(r, o, augment="paper"), {"optimizer": "muon"}),
    "fsq with critic": (lambda r, o: tokenizer(r, o, loss="logit_laplace", **CRITIC), {}),
    "vq": (lambda r, o: tokenizer(r, o, kind="vq", num_codes=32), {}),
    "dvae": (lambda r, o: tokenizer(r, o, kind="dvae", num_codes=32), {}),
    "vae": (lambda r, o: generator(r, o, kind="vae"), {}),
    "gan": (lambda r, o: generator(r, o, kind="gan"), {}),
    "steady gan": (lambda r, o: generator(r, o, kind="gan", **STEADY), {}),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_network_trains_on_a_device_as_on_the_cpu(name: str, gpu: Runtime) -> None:
    build, changes = OBJECTIVES[name]
    want = fit(build(CPU, optim(**changes)), optim(**changes), CPU).curve
    objective = build(gpu, optim(**changes))
    saved: list[int] = []
    got = fit(objective, optim(**changes), gpu, save=lambda state: saved.append(len(state.to_bytes()))).curve
    assert len(saved) == 2 and all(isinstance(p, OnDevice) for p in objective.network.parameters())
    for here, there in zip(want, got, strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-4)


REQUESTS = [Request((1 + i, 2), f"k{i}") for i in range(3)]


@pytest.mark.parametrize(
    ("network", "sampler"),
    [
        ({}, {"guidance": 2.0, "top_k": 10, "top_p": 0.8}),
        ({"mode": "paper"}, {"min_p": 0.1}),
        ({"norm": "rms"}, {"weights": "int8", "temperature": 0.0}),
        ({}, {"weights": "half"}),
    ],
)
def test_pictures_drawn_on_a_device_are_those_of_the_cpu(
    network: dict[str, Any], sampler: dict[str, Any], gpu: Runtime
) -> None:
    config = SamplerConfig.model_validate(sampler)
    want = draw(model(**network), REQUESTS, config, CPU, batch_size=2)
    np.testing.assert_array_equal(draw(model(**network), REQUESTS, config, gpu, batch_size=2), want)


def of_both(of: Callable[[Runtime], Any], gpu: Runtime) -> None:
    """The same answer on both."""
    want = [np.asarray(x) for x in of(CPU)]
    for here, there in zip(want, of(gpu), strict=True):
        np.testing.assert_allclose(
            there.cpu() if isinstance(there, torch.Tensor) else there, here, rtol=1e-4, atol=1e-6
        )


def test_captions_scores_and_explanations_of_a_device_are_those_of_the_cpu(gpu: Runtime) -> None:
    rows = token_rows()
    text, image = (part[:3] for part in rows.gather(np.arange(4)))
    words: Any = SimpleNamespace(encode=lambda text: [3 + len(word) for word in text.split()])
    warm = SamplerConfig(temperature=1.0)

    def of(runtime: Runtime) -> list[Any]:
        told = explain(model(), words, "red heart", rows.image[0], runtime)
        return [
            describe(model(), image, runtime),
            describe(model(), image, runtime, warm, ["a", "b", "c"]),
            continue_captions(model(), [[3], [4, 5], []], runtime),
            score_captions(model(), text, image, runtime),
            score_captions(model(), text, None, runtime),
            told.surprise,
            told.attention,
            *sequence_nats(model(), rows, runtime),
        ]

    of_both(of, gpu)


@pytest.mark.parametrize("kind", ["fsq", "dvae"])
def test_figures_of_a_device_are_those_of_the_cpu(kind: str, gpu: Runtime) -> None:
    made = build_tokenizer(TokenizerConfig.model_validate(FSQ | {"kind": kind, "num_codes": 32}), CPU.generator(1))
    truth = torch.from_numpy(pictures()).float() / 255
    rows = pictures().transpose(0, 2, 3, 1)

    def of(runtime: Runtime) -> list[Any]:
        network = made.to(runtime.device).eval()
        ids = network.encode(truth.to(runtime.device)).cpu().numpy().astype(np.uint16)
        likelihood = PixelLikelihood(network, rows[:6], ids[:6], runtime)
        return [
            ids,
            likelihood.nats(rows, ids),
            TokenizerFeatures(network, "d").of(truth),
            RandomFeatures().of(truth),
        ]

    of_both(of, gpu)


def test_pictures_and_bounds_of_generators_are_those_of_the_cpu(gpu: Runtime) -> None:
    vae, gan = (GeneratorConfig.model_validate(SMALL | {"latent_dim": 8, "kind": kind}) for kind in ("vae", "gan"))

    def of(runtime: Runtime) -> list[Any]:
        bound = bits_per_pixel_bound(
            build_generator(vae.model_copy(update={"loss": "logit_laplace"}), CPU.generator(1)),  # type: ignore[arg-type]
            pictures().transpose(0, 2, 3, 1),
            runtime,
        )
        noise = noise_of(["a", "b"], 8)
        return [bound, *(draw_pictures(build_generator(c, CPU.generator(1)), noise, runtime) for c in (vae, gan))]

    of_both(of, gpu)


@pytest.mark.slow  # its parts are above
def test_the_whole_chain_runs_on_a_device(gpu: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "resolve_device", lambda name, rank=0: gpu.device)
    monkeypatch.setattr(live, "matmul_flops", lambda runtime: 1e9)  # its products are made for a GPU
    with steps_in_this_process():
        results = chain(tiny_config("ingest.limit=48"), Settings(store=str(tmp_path)), bind(quietly))
    assert not any(result.reused for result in results.values())


def test_the_device_refuses_what_a_gpu_refuses(gpu: Runtime) -> None:
    here = torch.ones(3, device=gpu.device)
    for refused in (
        lambda: here + torch.ones(3),
        lambda: here.double(),
        lambda: torch.randn(3, generator=torch.Generator(), device=gpu.device),
        lambda: here.numpy(),
    ):
        with pytest.raises((RuntimeError, TypeError)):
            refused()
    assert (here + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0] and float(here[0]) == 1
