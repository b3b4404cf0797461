"""What a person sees of a training run while it runs: figures, samples, and a tracker's file.

Nothing here changes what is trained: it looks, and draws its random numbers apart.
"""

import base64
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import nn

from dalle_model.config import OptimConfig
from dalle_model.objectives import Objective
from dalle_model.runtime import Runtime
from dalle_model.throughput import matmul_flops
from tasks.artifacts import ObjectRef
from tasks.job import Job
from tasks.tracker import EventFile, available

SAMPLE = "training.samples"  # role; ``rows`` is the step
Draw = Callable[[nn.Module], bytes]
_SHOWN = ("loss", "loss_image", "loss_text", "grad_norm", "lr", "rows_per_s", "tokens_per_s", "mfu")


class LiveView:
    """Figures to the log and the progress bar, samples to the store, the UI and the tracker.

    draw: the network in eval mode -> a PNG of samples or reconstructions, always of the same prompts or pictures.
    samples: what earlier runs of the same training stored.
    """

    def __init__(
        self, job: Job, objective: Objective, optim: OptimConfig, runtime: Runtime, title: str, draw: Draw | None
    ) -> None:
        self._job = job
        self._objective = objective
        self._optim = optim
        self._title = title
        self._draw = draw
        self._limit = matmul_flops(runtime) * runtime.world
        self._flops = objective.flops_per_row()
        self.samples: tuple[ObjectRef, ...] = ()
        self._file: EventFile | None = None
        if runtime.rank == 0:
            self._introduce(runtime)

    def _introduce(self, runtime: Runtime) -> None:
        parts = [f"matrix products in {str(runtime.dtype).removeprefix('torch.')}: {self._limit / 1e9:,.0f} GFLOP/s"]
        for name, value in self._objective.references().items():
            parts.append(f"{name} when nothing is learnt: {value:.3f} (ln {round(math.exp(value)):,})")
        self._job.log("; ".join(parts))

    def begin(self, curve: Sequence[Mapping[str, float]], samples: Sequence[ObjectRef]) -> None:
        """Take up what an earlier run left: the points of its curve and its samples."""
        self.samples = tuple(samples)
        folder = self._job.settings.tensorboard
        if folder is None or self._job.rank != 0:
            return
        if not available():
            self._job.log("DALLE_TENSORBOARD is set, but tensorboardX is not installed: no event file is written")
            return
        name = f"{self._job.spec.stage}-{self._job.fingerprint[:12]}"
        file = folder / name / f"events.out.tfevents.{int(time.time())}.{self._job.fingerprint[:12]}"
        self._file = EventFile(file)
        for point in curve:
            self._file.point(point)
        self._job.log(f"tensorboard --logdir {folder} shows the run while it trains")

    def report(self, point: dict[str, float]) -> None:
        """A new point, with ``rows_per_s``."""
        figures = {k: v for k, v in point.items() if k != "steps"}
        figures["mfu"] = point["rows_per_s"] * self._flops / self._limit
        if tokens := self._objective.tokens_per_row:
            figures["tokens_per_s"] = point["rows_per_s"] * tokens
        shown = {name: figures[name] for name in _SHOWN if name in figures}
        self._job.show_progress(int(point["step"]), self._optim.steps, "steps", **shown)
        if self._file:
            self._file.point(figures)

    def observe(self, step: int, network: nn.Module) -> None:
        """Draw, store and show."""
        if self._draw is None:
            return
        png = self._draw(network)
        sample = self._job.put(png, ext="png", role=SAMPLE, rows=step)
        self.samples += (sample,)
        self._job.log(f"{self._title} after {step} steps: {self._job.store.url(sample.key)}")
        self._job.show_picture(f"{self._title} after {step} steps", base64.b64encode(png).decode())
        if self._file:
            self._file.picture(step, self._title, png, _size(png))

    def objects(self, curve: Sequence[Mapping[str, float]]) -> tuple[ObjectRef, ...]:
        """Samples and the event file of the whole run, to be kept with the artifact."""
        if self._file:
            self._file.close()
        if not available():
            return self.samples
        whole = EventFile(Path(self._job.spool) / "events.out.tfevents")
        for point in curve:
            whole.point(point)
        for name, value in self._objective.references().items():
            for step in (curve[0]["step"], curve[-1]["step"]):
                whole.point({"step": step, f"{name} when nothing is learnt": value})
        for sample in self.samples:
            png = self._job.read(sample)
            whole.picture(sample.rows, self._title, png, _size(png))
        whole.close()
        return (*self.samples, self._job.put(whole.file, ext="tfevents", role="tensorboard", rows=len(curve)))


def _size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size
