"""Reliability diagrams and risk-coverage curves, for one run and for the arms of a report."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medvqa.evaluation.figure import FAINT, SERIES, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_confidence(curves: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Draw both diagrams with one line per label.

    Args:
        curves: Label -> `Confidence.curves()`.
    """
    figure, ((left, right),) = new_figure(9, 4.2, ncols=2)
    draw_diagrams((left, right), [(label, own, SERIES[number % len(SERIES)])
                         for number, (label, own) in enumerate(curves.items())])  # fmt: skip
    left.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def draw_diagrams(
    axes: "Sequence[Axes]", curves: Sequence[tuple[str, Mapping[str, Any], str]]
) -> None:
    """Draw into two axes; each curve is label, `Confidence.curves()` and colour."""
    left, right = axes
    left.plot([0, 1], [0, 1], color=FAINT, lw=1, ls="--")
    for label, own, colour in curves:
        bins = own["bins"]
        most = max(one["count"] for one in bins)
        x, y = ([one[name] for one in bins] for name in ("confidence", "accuracy"))
        left.plot(x, y, color=colour, lw=1.2, label=label)
        left.scatter(x, y, [8 + 52 * one["count"] / most for one in bins], color=colour, alpha=0.8)
        right.plot(own["coverage"], own["risk"], color=colour, lw=1.5, label=label)
    left.set_xlabel("confidence (mean of a bin; a point grows with its answers)")
    left.set_ylabel("exact match")
    right.set_xlabel("coverage: share of questions answered, the surest first")
    right.set_ylabel("risk: share of them answered wrong")
    for axis in axes:
        axis.set_xlim(0, 1)
        axis.set_ylim(-0.02, 1.02)
        axis.grid(color=FAINT, alpha=0.25)
