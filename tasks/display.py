"""Progress of a step on a terminal: a bar with rate and time left, or plain lines where there is no terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from tasks.pace import Pace

Listener = Callable[[dict[str, Any]], None]
_LINE_EVERY_S = 15.0


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:,.1f}/s", style="progress.data.speed")


class _CountColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_count(int(task.completed), int(task.total or 0), task.fields["unit"]))


def _count(done: int, total: int, unit: str) -> str:
    return f"{done:,}/{total:,} {unit}" if total else f"{done:,} {unit}"


def _figures(event: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in (event.get("figures") or {}).items())


@contextmanager
def step_display(stage: str) -> Iterator[Listener]:
    """A listener of step events that shows them on standard error until the block ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(stage)
        return
    # Together 78 cells: on the narrowest usual terminal rate and time left are whole; figures need a wider one.
    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description:13}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=12),
        _CountColumn(table_column=Column(no_wrap=True)),
        _RateColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("left"),
    )
    if console.width >= 120:
        columns += (TextColumn("{task.fields[figures]}", style="dim"),)
    with Progress(*columns, console=console, transient=False) as progress:
        yield _Bars(stage, progress)


class _Bars:
    def __init__(self, stage: str, progress: Progress) -> None:
        self._progress = progress
        self._stage = stage
        self._bars: dict[str, Any] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            unit, total = event["unit"], event["total"] or None  # 0: nobody knows yet
            if unit not in self._bars:  # a stage may pass through phases that count different things
                self._bars[unit] = self._progress.add_task(
                    self._stage, total=total, completed=event["done"], unit=unit, figures=""
                )
            self._progress.update(self._bars[unit], completed=event["done"], total=total, figures=_figures(event))
        elif kind == "log":
            self._progress.console.print(f"[dim]{self._stage}: [/dim]", end="")
            self._progress.console.print(event["text"], markup=False, highlight=False)
        elif kind == "reused":
            self._progress.console.print(
                f"{self._stage}: {event['decision']} ({event['fingerprint'][:12]})", markup=False, highlight=False
            )


class _Lines:
    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._last = 0.0
        self._pace = Pace()

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            self._progress(event)
        elif kind == "log":
            self._print(event["text"])
        elif kind in ("reused", "start"):
            self._print(f"{event['decision']} ({event['fingerprint'][:12]})")

    def _progress(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        unit, done, total = event["unit"], event["done"], event["total"]
        rate = self._pace.of(event, now)
        if (done < total or not total) and now - self._last < _LINE_EVERY_S:
            return
        self._last = now
        speed = f"{rate:,.1f} {unit}/s" if rate > 0 else ""
        left = f"{(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        self._print("  ".join(filter(None, (_count(done, total, unit), speed, left, _figures(event)))))

    def _print(self, text: str) -> None:
        # Not print: inside a flow Prefect takes what is printed, standard error included, for its own log alone.
        sys.stderr.write(f"{self._stage}: {text}\n")
        sys.stderr.flush()
