"""Publishing in the Prefect UI: the cards of an artifact, and the progress of a step.

Beside ``tasks.prefect_tasks`` the only module that imports Prefect. The UI is a courtesy: nothing here can fail a step.
"""

import base64
import contextvars
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

from tasks.artifacts import Manifest
from tasks.cards import CardMaker, step_cards
from tasks.curves import number
from tasks.evaluation_card import evaluation_card
from tasks.markdown import escaped, key_of, small_picture
from tasks.pace import Pace
from tasks.pages import data_uri, words
from tasks.store import Store

UPDATE_EVERY_S = 2.0
LOG_EVERY_S = 15.0


def publish(
    manifest: Manifest, store: Store, *, decision: str = "", say: Callable[[str], None] = lambda _: None
) -> None:
    """Show an artifact in the current Prefect run; without a run, do nothing.

    ``decision`` says in words why the step ran or was reused. Whatever goes wrong is logged and passed over; ``say``
    also hears of a server that is out of reach.
    """
    if not _in_run():
        return
    for make in card_makers(manifest):
        try:
            card = make(manifest, store, decision)
            if card is not None:
                create_markdown_artifact(card.markdown, key=card.key, description=card.description)
        except Exception as error:  # a damaged picture or a server out of reach must not undo a finished step
            what = f"{manifest.step} {manifest.fingerprint[:12]}"
            if isinstance(error, httpx.TransportError):  # its client tried for a minute, and would for each card
                say(
                    f"Prefect's server is out of reach, so its UI does not show all of {what}, which is finished and kept"
                )
                return
            _log("warning", f"the Prefect UI does not show all of {what}: {type(error).__name__}: {error}")


def card_makers(manifest: Manifest) -> tuple[CardMaker, ...]:
    """One function per card; each returns None when there is nothing to show.

    An evaluation is one card, in the order of its report: who asks what a model can do should not gather the answer.
    """
    if manifest.kind == "evaluation":
        return (evaluation_card,)
    return step_cards(manifest)


# --- progress ----------------------------------------------------------------------------------------------------


class ProgressReporter:
    """A listener of one step's events that shows them in the Prefect run: a progress artifact and lines in the log.

    Updates are sent by a thread of their own, one at a time and at most one per ``every_s``: a server that is slow or
    away never holds up the step. Outside a run it does nothing.
    """

    def __init__(self, stage: str, *, every_s: float = UPDATE_EVERY_S) -> None:
        self._stage = stage
        self._every_s = every_s
        self._active = _in_run()
        self.updates = 0  # sent so far
        self._artifact: UUID | None = None
        self._lock = threading.Lock()
        self._latest: tuple[float, str] | None = None
        self._sending = False
        self._sent_at = -math.inf
        self._logged_at = -math.inf
        self._logged: tuple[int, int, object] | None = None
        self._pace = Pace()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event of ``tasks.launch``; kinds it does not know are passed over."""
        if not self._active:
            return
        try:
            self._take(event)
        except Exception as error:  # an odd event is no reason to stop the work that it tells of
            _log("debug", f"an event was not shown: {type(error).__name__}: {error}")

    def _take(self, event: Mapping[str, Any]) -> None:
        kind = event.get("event")
        if kind == "progress":
            self._progress(event)
        elif kind == "log":
            _log("info", str(event["text"]))
        elif kind == "picture":
            run = contextvars.copy_context()  # a thread of its own: a slow server must not hold up the step
            threading.Thread(target=run.run, args=(self._picture, event), daemon=True).start()
        elif kind in ("start", "reused"):
            _log("info", f"{self._stage} {event['fingerprint'][:12]}: {event['decision']}")
            if kind == "reused":
                self._show(100.0, f"{self._stage}: {event['decision']}", final=True)

    def _picture(self, event: Mapping[str, Any]) -> None:
        """One artifact per step, with its history: the newest is on top."""
        try:
            title = str(event["title"])
            image = data_uri(small_picture(base64.b64decode(event["png"])))
            create_markdown_artifact(
                f"## {escaped(title)}\n\n![{escaped(title)}]({image})",
                key=key_of(self._stage, "live"),
                description=title,
            )
        except Exception as error:  # a picture is a courtesy
            _log("debug", f"a picture was not shown: {type(error).__name__}: {error}")

    def _progress(self, event: Mapping[str, Any]) -> None:
        done, total = int(event["done"]), int(event["total"])
        now = time.monotonic()
        text = self._text(event, done, total, now)
        at = (done, total, event.get("unit"))
        finished = done >= total > 0  # a total of 0 is not known yet
        if (finished and at != self._logged) or now - self._logged_at >= LOG_EVERY_S:
            self._logged_at, self._logged = now, at
            _log("info", text)
        self._show(100.0 * min(done / total, 1.0) if total else 0.0, text, final=finished)

    def _text(self, event: Mapping[str, Any], done: int, total: int, now: float) -> str:
        unit = str(event.get("unit", "rows"))
        rate = self._pace.of(event, now)
        parts = [f"{self._stage}: {done:,} of {total:,} {unit}" if total else f"{self._stage}: {done:,} {unit}"]
        if rate > 0:
            parts.append(f"{number(round(rate, 1))} {unit}/s")
            if done < total:
                parts.append(f"{(total - done) / rate:,.0f} s left")
        parts += [f"{words(name)} {number(float(value))}" for name, value in (event.get("figures") or {}).items()]
        return ", ".join(parts)

    def _show(self, percent: float, text: str, *, final: bool) -> None:
        with self._lock:
            self._latest = (percent, text)
            if self._sending or (not final and time.monotonic() - self._sent_at < self._every_s):
                return
            self._sending = True
        run = contextvars.copy_context()  # the thread belongs to the same task run
        threading.Thread(target=run.run, args=(self._send,), name=f"progress-{self._stage}", daemon=True).start()

    def _send(self) -> None:
        """Send the latest figure; again when a final one came in the meantime."""
        while True:
            with self._lock:
                if self._latest is None or (self._latest[0] < 100 and time.monotonic() - self._sent_at < self._every_s):
                    self._sending = False
                    return
                percent, text = self._latest
                self._latest = None
                self._sent_at = time.monotonic()
                self.updates += 1
            try:
                if self._artifact is None:
                    made = create_progress_artifact(percent, key=key_of(self._stage, "progress"), description=text)
                    self._artifact = made if isinstance(made, UUID) else None
                else:
                    update_progress_artifact(self._artifact, percent, description=text)
            except Exception as error:  # progress is a courtesy
                _log("debug", f"progress was not sent: {type(error).__name__}: {error}")


def _in_run() -> bool:
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None


def _log(level: str, text: str) -> None:
    getattr(get_run_logger(), level)(text)
