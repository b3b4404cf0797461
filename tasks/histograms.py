"""Distributions of scores as inline SVG, with the threshold; without style attributes, which the pages' policy forbids."""

import math

from markupsafe import Markup, escape

from dalle_model.curation.distributions import Distribution
from tasks.curves import number

_WIDTH, _HEIGHT, _BASE = 400, 120, 96


def histogram_svg(distribution: Distribution) -> Markup:
    """Bars of all rows with those of kept ones before them, and a line for each threshold; empty without a score.

    Heights are square roots of counts: what a threshold cuts off is few rows, and must be seen beside many.
    """
    most = int(distribution.every.max(initial=0))
    if not most:
        return Markup("")
    title = f"{distribution.rule.name}: {distribution.total} rows with a score"
    parts = [f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    step = _WIDTH / len(distribution.every)
    for kind, counts in (("every", distribution.every), ("kept", distribution.kept)):
        for place, count in enumerate(counts.tolist()):
            if count:
                tall = max(1.5, (_BASE - 8) * math.sqrt(count / most))
                low, high = distribution.edges[place], distribution.edges[place + 1]
                parts.append(
                    f'<rect class="{kind}" x="{place * step + 0.5:.2f}" y="{_BASE - tall:.2f}" width="{step - 1:.2f}" height="{tall:.2f}">'
                    f"<title>{number(float(low))} to {number(float(high))}: {count} rows {'kept' if kind == 'kept' else 'in all'}</title></rect>"
                )
    parts.append(f'<path class="rule" d="M0 {_BASE}H{_WIDTH}"/>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value = distribution.edges[round(share * (len(distribution.edges) - 1))]
        parts.append(
            f'<text x="{share * _WIDTH:.0f}" y="{_BASE + 16}" text-anchor="{anchor}">{number(float(value))}</text>'
        )
    for test in distribution.tests:
        bound = test.low if math.isfinite(test.low) else test.high
        if distribution.edges[0] <= bound <= distribution.edges[-1]:
            x = distribution.place(bound) * _WIDTH
            parts.append(f'<path class="threshold" d="M{x:.1f} 0V{_BASE}"><title>{escape(test.words)}</title></path>')
    parts.append("</svg>")
    return Markup("".join(parts))
