"""Study -> figures by matplotlib; each is drawn once and saved as PNG, SVG, or for the page."""

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from medvqa.evaluation.comparison import LEVEL
from medvqa.evaluation.figure import FAINT, INK, SERIES, draw_diagrams, new_figure
from medvqa.evaluation.score import SHOWN
from medvqa.report.arms import Arm
from medvqa.report.runs import Run
from medvqa.report.study import Study, phases_in_order
from medvqa.report.table import probability
from medvqa.tracking.progress import track
from medvqa.tracking.record import read_lines
from medvqa.tracking.run_file import StepFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 400  # of a curve; longer ones are averaged in blocks
METRIC = "exact_match"
BASELINE_MARKS = {"majority": "|", "zero_shot": "x", "blind": "^"}


def figures(study: Study) -> dict[str, Callable[[], "Figure | None"]]:
    """Return the figures by name; each draws when called, and gives None with nothing to draw."""
    of_sets = {
        "grid": grid,
        "differences": differences,
        "forgetting": forgetting,
        "confidence": confidence,
    }
    return {
        **{
            f"{kind}_{name}": partial(draw, study, name)
            for name in study.set_names
            for kind, draw in of_sets.items()
        },
        "loss": partial(loss, study),
        "cost": partial(cost, study),
    }


def write_figures(study: Study, out: Path) -> None:
    """Write every figure as PNG and SVG."""
    for name, draw in track(list(figures(study).items()), description="drawing figures"):
        if figure := draw():
            path = out / "plots" / re.sub(r"[^A-Za-z0-9_-]", "-", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)
            figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})


def _colours(arms: Iterable[Arm]) -> dict[str, str]:
    """Return one colour per ordering, the same in every figure."""
    orderings = dict.fromkeys(arm.ordering for arm in arms)
    return {name: SERIES[i % len(SERIES)] for i, name in enumerate(orderings)}


def grid(study: Study, set_name: str) -> "Figure | None":
    """Draw every arm's exact match with its interval, one panel per row; marks are baselines."""
    place = (set_name, "overall", METRIC)
    chosen = [r for r in study.results if (r.set_name, r.group, r.metric) == place]
    rows = list(dict.fromkeys(r.arm.row for r in chosen))
    if not chosen:
        return None
    colours = _colours(study.arms)
    figure, axes = new_figure(7.5, 0.9 + 1.1 * sum(
        0.28 * len({r.arm.name for r in chosen if r.arm.row == row}) + 0.45 for row in rows
    ), nrows=len(rows), sharex=True)  # fmt: skip
    for axis, row in zip(axes[:, 0], rows, strict=True):
        of_row = [r for r in chosen if r.arm.row == row]
        names = list(dict.fromkeys(r.arm.ordering for r in of_row))
        for r in of_row:
            y, score = names.index(r.arm.ordering), r.mean.score
            if r.phase == "final":
                axis.plot([score.low, score.high], [y, y], color=colours[r.arm.ordering], lw=2)
                axis.plot(score.mean, y, "o", color=colours[r.arm.ordering], ms=6)
            elif r.phase in BASELINE_MARKS:
                axis.plot(score.mean, y, BASELINE_MARKS[r.phase], color=FAINT, ms=7)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_title(row, loc="left", fontsize=9)
        axis.grid(axis="x")
    axes[-1, 0].set_xlabel(
        f"{set_name}: {SHOWN[METRIC]}, 95 % interval   "
        "(| majority answer, x zero-shot base, ▵ blind)"
    )
    return figure


def differences(study: Study, set_name: str) -> "Figure | None":
    """Draw the forest of paired differences in exact match with Holm's p-values."""
    place = (set_name, "overall", METRIC)
    chosen = [c for c in study.comparisons if (c.set_name, c.group, c.metric) == place]
    if not chosen:
        return None
    figure, axes = new_figure(8.5, 0.9 + 0.3 * len(chosen))
    axis = axes[0, 0]
    for y, c in enumerate(chosen):
        score = c.crossed.difference
        colour = SERIES[0] if c.p_holm < LEVEL else FAINT
        axis.plot([score.low, score.high], [y, y], color=colour, lw=2)
        axis.plot(score.mean, y, "s", color=colour, ms=6)
    axis.axvline(0, color=INK, lw=0.8)
    labels = [
        f"{c.common_row}: ".removeprefix(": ") + c.label + (" †" if c.unequal else "")
        for c in chosen
    ]
    axis.set_yticks(range(len(chosen)), labels)
    axis.set_ylim(len(chosen) - 0.5, -0.5)
    right = axis.secondary_yaxis("right")
    right.set_yticks(
        range(len(chosen)),
        [
            "-" if c.are_identical else f"p = {probability(c.p_holm)}".replace("= <", "< ")
            for c in chosen
        ],
    )
    right.spines["right"].set_visible(False)
    right.tick_params(length=0)
    axis.set_xlabel(f"{set_name}: difference in {SHOWN[METRIC]}, 95 % interval; p by Holm")
    axis.grid(axis="x")
    return figure


def forgetting(study: Study, set_name: str) -> "Figure | None":
    """Draw exact match after each stage as a matrix: arms by phases, open and closed apart."""
    import numpy as np

    means = {
        (r.arm.name, r.phase, r.group): r.mean.score.mean
        for r in study.results
        if r.set_name == set_name and r.metric == METRIC
    }
    arms = [arm for arm in study.arms if (arm.name, "final", "overall") in means]
    phases = [phase for phase in phases_in_order(study) if phase not in ("majority", "blind")]
    if not arms:
        return None
    figure, axes = new_figure(3.5 + 1.5 * len(phases), 1.2 + 0.32 * len(arms), ncols=2, sharey=True)
    for axis, group in zip(axes[0], ("open", "closed"), strict=True):
        values = np.array(
            [[means.get((arm.name, phase, group), np.nan) for phase in phases] for arm in arms]
        )
        axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto", alpha=0.85)
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value > 0.65 else "black"
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
        axis.set_xticks(range(len(phases)), [phase.replace("_", " ") for phase in phases])
        axis.set_title(f"{set_name}, {group} questions: {SHOWN[METRIC]}", fontsize=9)
    axes[0, 0].set_yticks(range(len(arms)), [arm.name for arm in arms])
    return figure


def confidence(study: Study, set_name: str) -> "Figure | None":
    """Draw every final arm's reliability diagram and risk-coverage curve, all questions."""
    key = (set_name, "final", "overall")
    chosen = [c for c in study.confidence if (c.set_name, c.phase, c.group) == key]
    if not chosen:
        return None
    figure, axes = new_figure(8, 3.6 + 0.16 * len(chosen), ncols=2)
    curves = [(own.arm.name, own.curves, SERIES[number % len(SERIES)])
              for number, own in enumerate(chosen)]  # fmt: skip
    draw_diagrams(axes[0], curves)
    figure.legend(handles=axes[0, 1].lines, loc="outside lower left", frameon=False, fontsize=8)
    return figure


def loss(study: Study) -> "Figure | None":
    """Draw the training loss: one panel per row of the grid, one colour per ordering."""
    rows = list(dict.fromkeys(arm.row for arm in study.arms))
    if not rows:
        return None
    colours = _colours(study.arms)
    figure, axes = new_figure(8, 0.6 + 2.4 * len(rows), nrows=len(rows))
    for axis, row in zip(axes[:, 0], rows, strict=True):
        for arm in (arm for arm in study.arms if arm.row == row):
            for number, run in enumerate(arm.runs):
                steps, losses, boundaries = loss_curve(run)
                label = f"{arm.ordering} ({len(arm.runs)} seeds)" if number == 0 else None
                axis.plot(steps, losses, color=colours[arm.ordering], lw=1, alpha=0.8, label=label)
                for boundary in boundaries if number == 0 else ():
                    axis.axvline(boundary, color=colours[arm.ordering], ls=":", lw=1.2)
        axis.set_title(row, loc="left", fontsize=9)
        axis.set_ylabel("loss")
        axis.grid()
        axis.legend(fontsize=8, frameon=False, loc="upper right")
    axes[-1, 0].set_xlabel("optimiser step (dotted: a stage ends)")
    return figure


def loss_curve(run: Run) -> tuple[list[float], list[float], list[float]]:
    """Return steps, losses, and the steps at which each stage but the last ends."""
    rows = read_lines(run.directory / "metrics.jsonl", StepFile)
    boundaries = [a["step"] + 0.5 for a, b in pairwise(rows) if a["stage"] != b["stage"]]
    block = max(1, -(-len(rows) // MOST_POINTS))
    blocks = [rows[i : i + block] for i in range(0, len(rows), block)]

    def means(name: str) -> list[float]:
        return [sum(float(row[name]) for row in rows) / len(rows) for rows in blocks]

    return means("step"), means("loss"), boundaries


def cost(study: Study) -> "Figure | None":
    """Draw wall time and peak memory of every finished cell."""
    arms = [arm for arm in study.arms if arm.runs]
    if not arms:
        return None
    figure, axes = new_figure(8, 0.9 + 0.32 * len(arms), ncols=2, sharey=True)
    for axis, value, label in (
        (axes[0, 0], seconds_of, "wall time, s (one mark per seed)"),
        (axes[0, 1], gigabytes_of, "peak memory, GB (GPU where there is one)"),
    ):
        for y, arm in enumerate(arms):
            points = [point for run in arm.runs if (point := value(run)) is not None]
            axis.plot(points, [y] * len(points), "o", color=SERIES[0], ms=5, alpha=0.7)
        axis.set_xlim(left=0)
        axis.set_xlabel(label)
        axis.grid(axis="x")
    axes[0, 0].set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes[0, 0].set_ylim(len(arms) - 0.5, -0.5)
    return figure


def seconds_of(run: Run) -> float | None:
    """Return the wall time from start to end; of a resumed run, the sum of its phases.

    That sum counts evaluations between stages twice: the training phase contains them too.
    """
    values = run.values
    if values.get("num_starts") == 1 and "ended" in values:
        started, ended = (datetime.fromisoformat(values[name]) for name in ("started", "ended"))
        return (ended - started).total_seconds()
    return sum(values["seconds"].values()) if values.get("seconds") else None


def gigabytes_of(run: Run) -> float | None:
    """Return the peak memory of the GPU, or of the process where there was none."""
    peak = run.values.get("peak_gpu_bytes") or run.values.get("peak_memory_bytes")
    return peak / 1e9 if peak else None
