"""What only a GPU can show. Everything here has a CPU twin in the default run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dalle_model.config import ModelConfig, OptimConfig, SamplerConfig, TrainConfig
from dalle_model.dalle import Dalle, DalleShape, build_dalle
from dalle_model.errors import DeviceError
from dalle_model.objectives import DalleObjective
from dalle_model.runtime import Runtime
from dalle_model.sampling import Request, draw
from dalle_model.token_batches import TokenRows
from dalle_model.training import fit
from tasks.devices import DevicePolicy, lease_for, preflight, resolve

pytestmark = pytest.mark.gpu

SHAPE = DalleShape(text_vocab=300, max_text_tokens=8, image_vocab=512, grid=4)


def rows() -> TokenRows:
    numbers = np.random.default_rng(0)
    text = numbers.integers(1, 300, (64, 8), dtype=np.uint16)
    image = numbers.integers(0, 512, (64, 16), dtype=np.uint16)
    return TokenRows(text, image, np.ones(64, np.float32))


def trained(runtime: Runtime, steps: int = 20) -> tuple[Dalle, list[dict[str, float]]]:
    model = build_dalle(ModelConfig(dim=64, depth=2, heads=4), SHAPE, Runtime().generator(1))
    config = TrainConfig(optim=OptimConfig(steps=steps, batch_size=32, warmup_steps=2, log_every=1))
    result = fit(DalleObjective(model, rows(), config, runtime), config.optim, runtime)
    return model, result.curve


def test_auto_resolves_to_the_gpu_with_bfloat16_where_it_has_it() -> None:
    runtime = resolve(DevicePolicy())
    assert runtime.device.type == "cuda"
    assert (runtime.dtype == torch.bfloat16) == torch.cuda.is_bf16_supported(including_emulation=False)


def test_float32_training_follows_the_cpu_and_bfloat16_stays_near() -> None:
    gpu = Runtime(device=torch.device("cuda"))
    _, on_cpu = trained(Runtime())
    _, on_gpu = trained(gpu)
    _, in_bf16 = trained(replace(gpu, dtype=torch.bfloat16))
    cpu, f32, bf16 = (np.array([p["loss"] for p in curve]) for curve in (on_cpu, on_gpu, in_bf16))
    np.testing.assert_allclose(f32, cpu, rtol=2e-3)
    np.testing.assert_allclose(bf16, cpu, rtol=5e-2)


def test_a_picture_on_one_gpu_does_not_depend_on_its_batch() -> None:
    runtime = Runtime(device=torch.device("cuda"))
    model, _ = trained(runtime, steps=5)
    requests = [Request((i % 200 + 1, 2), f"key {i}") for i in range(37)]
    together = draw(model, requests, SamplerConfig(), runtime, batch_size=16)
    alone = draw(model, requests[7:8], SamplerConfig(), runtime, batch_size=16)
    np.testing.assert_array_equal(together[7:8], alone)


def test_a_gpu_is_leased_by_its_uuid_and_freed(tmp_path: Path) -> None:
    runtime = resolve(DevicePolicy(device="cuda:0"))
    held = lease_for(runtime, tmp_path, wait_s=0, log=print)
    assert held is not None and str(torch.cuda.get_device_properties(0).uuid) in held.path.name
    with pytest.raises(DeviceError, match="is held by"):
        lease_for(runtime, tmp_path, wait_s=0, log=print)
    held.release()
    again = lease_for(runtime, tmp_path, wait_s=0, log=print)
    assert again is not None
    again.release()


def test_work_that_cannot_fit_is_refused_before_it_starts() -> None:
    runtime = resolve(DevicePolicy(device="cuda:0"))
    with pytest.raises(DeviceError, match="GB are free"):
        preflight(runtime, 10**15, "a model of a petabyte")
