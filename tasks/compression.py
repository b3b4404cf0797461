"""May a model be drawn with smaller weights? Its pictures with both, on the same prompts and seeds, within a margin.

A test of difference would call any two models alike on few prompts. This one is the other way round (non-inferiority):
smaller weights are refused until the prompts show that no figure lost more than the margin.
"""

from dataclasses import dataclass
from typing import Any

from dalle_model.errors import DataError
from tasks.comparison import Comparison, Row
from tasks.figures import better_of

_NOT_DRAWN = "bits_per_pixel"  # measured on the weights as trained, whatever draws


@dataclass(frozen=True)
class Decision:
    """Whether the smaller weights are accepted. lost: figures that may have lost more than ``margin``, with the reason."""

    kind: str
    margin: float
    figures: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """No figure may have lost more than the margin."""
        return not self.lost

    @property
    def sentence(self) -> str:
        """For a person, and for the name's history."""
        told = f"{len(self.figures)} figures ({', '.join(self.figures)}) lost at most {self.margin:g}"
        return f"{self.kind} accepted: {told}" if self.accepted else f"{self.kind} refused: {'; '.join(self.lost)}"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "accepted": self.accepted, "sentence": self.sentence}


def decide(told: Comparison, kind: str, margin: float) -> Decision:
    """Smaller weights (second) against full ones (first), by every deciding figure of drawn pictures.

    margin: how much of a figure, a share of 0 to 1, may be lost. It must lie outside the 95 % interval of the mean
    difference, and where n pairs show no loss at all, be above 3 / n, what these could have missed (rule of three).
    DataError when nothing that was drawn decides.
    """
    rows = [row for row in told.rows if row.decides and not row.figure.startswith(_NOT_DRAWN)]
    if not rows:
        raise DataError(
            "no figure of drawn pictures decides; raise evaluate.num_captions, or evaluate.judge_steps above 0"
        )
    lost = tuple(reason for row in rows if (reason := _lost(row, margin)))
    return Decision(kind, margin, tuple(row.figure for row in rows), lost)


def _lost(row: Row, margin: float) -> str:
    told = row.told
    worst = told.low if better_of(row.figure) == "higher" else -told.high
    if worst < -margin:
        return f"{row.figure} may have lost {-worst:.3g} ({told.first:.4g} -> {told.second:.4g}, {told.pairs} pairs), more than {margin:g}"
    if not told.losses and 3 / told.pairs > margin:
        return f"{row.figure} was measured on {told.pairs} pairs, which show no loss below {3 / told.pairs:.2g}: raise evaluate.num_captions and num_heldout, or the margin"
    return ""
