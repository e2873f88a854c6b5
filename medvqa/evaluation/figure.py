"""Figures of runs and reports: their style, as SVG for a page, and the diagrams that both draw."""

import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's palette, told apart by colour-blind eyes, without the yellow that white hides.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6a51a3", "#7f7f7f")
INK, FAINT = "#1f2328", "#8c959f"


@contextmanager
def own_style() -> Iterator[None]:
    """Draw by our own settings: neither the user's MPLBACKEND, nor matplotlibrc, nor figures count.

    matplotlib reads MPLBACKEND once, and cannot be imported if the name is unknown to it.
    """
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    import matplotlib as mpl

    if backend:
        with suppress(ValueError):  # as for the user's own figures; ours go to files
            mpl.rcParams["backend"] = os.environ["MPLBACKEND"] = backend
    with mpl.rc_context():
        mpl.rcdefaults()
        yield


def new_figure(width: float, height: float, **layout: Any) -> "tuple[Figure, Any]":
    """Return a figure of that size in inches, and its axes as rows and columns."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(
        {
            "svg.fonttype": "none",  # text stays text: it can be read aloud, found and copied
            "svg.hashsalt": "medvqa",
            "font.size": 9,
            "text.color": INK,
            "axes.edgecolor": FAINT,
            "grid.color": FAINT,
            "grid.alpha": 0.3,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.titley": 1.0,  # right above the axes, without a search for a place
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
        }
    )
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(squeeze=False, **layout)


def page_svg(figure: "Figure") -> str:
    """Return the figure for the page: its colours are the page's own, light or dark."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for number, colour in enumerate(SERIES, start=1):
        svg = svg.replace(colour, f"var(--series-{number})")
    svg = svg.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    # The page says what the figure shows; fixed sizes would not shrink on a narrow screen.
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'height="[\d.]+pt"', "", svg, count=1)
    )


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
