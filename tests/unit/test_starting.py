"""What the start of a process costs: of torch only what one rank needs is imported, and counting FLOPs is torch's count."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dalle_model.flops import FlopCounter
from flows.prefect_home import default_home, profile_api
from flows.temporary_server import server_environment
from tasks.settings import Settings

# In a process of its own: other tests have imported all of it.
TRAINING = """
import sys
import tasks.encode_images, tasks.fit_dalle, tasks.fit_tokenizer, tasks.generate
from support.tiny_training import dalle_objective, optim_of
from dalle_model.checkpoint import TrainState
from dalle_model.runtime import Runtime
from dalle_model.training import fit

for optimizer in ("adamw", "muon"):
    optim, saved = optim_of(optimizer, steps=2), []
    objective = dalle_objective(optim, Runtime())
    assert objective.flops_per_row() > 0
    fit(objective, optim, Runtime(), save=saved.append)
    state = TrainState.from_bytes(saved[0].to_bytes())
    assert fit(objective, optim, Runtime(), resume=state).steps == 2

import pyarrow as pa
from tasks.worker import _spare_pandas

_spare_pandas()
pa.table({"a": [1, 2], "b": ["x", None]})
print(*sorted({"pandas", "torch._dynamo", "torch.distributed.tensor", "torch.distributed.checkpoint", "sympy"} & sys.modules.keys()))
"""


def test_a_process_that_trains_alone_imports_neither_torchs_compiler_nor_what_shards_nor_pandas() -> None:
    tests = Path(__file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(tests)!r})\n{TRAINING}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == ""


def test_a_user_without_a_home_works_in_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container with any user number: neither the environment nor the system knows a home."""
    monkeypatch.setenv("HOME", "~")
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "PREFECT_HOME", "DALLE_SPOOL"):
        monkeypatch.delenv(name, raising=False)
    temporary = Path(tempfile.gettempdir())
    assert Settings().spool == temporary / f"dalle-spool-{os.getuid()}"
    assert default_home() == temporary / f"dalle-prefect-{os.getuid()}"
    assert profile_api() == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("training", [True, False])
def test_flops_are_counted_as_torch_counts_them(training: bool) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.GELU(),
        torch.nn.ConvTranspose2d(8, 4, 2),
        torch.nn.Flatten(2),
        torch.nn.TransformerEncoderLayer(49, 7, 16, batch_first=True),
        torch.nn.Linear(49, 5),
    ).train(training)
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    with FlopCounter() as ours:
        network(images).sum().backward()
    with FlopCounterMode(display=False) as theirs:
        network(images).sum().backward()
    assert ours.total == theirs.get_total_flops() > 0


def test_a_server_forgets_old_runs_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
    monkeypatch.delenv(name, raising=False)
    assert {"events", "flow_runs"} == set(server_environment(tmp_path)[name].split(","))
    monkeypatch.setenv(name, "events")
    assert server_environment(tmp_path)[name] == "events"
