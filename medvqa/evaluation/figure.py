"""An empty figure in the style of all figures, and a drawn one as SVG for a page."""

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind eyes, without the yellow that white hides.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6a51a3", "#7f7f7f")
INK, FAINT = "#1f2328", "#8c959f"


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
