"""The pictures that a run ends with: loss.png, metrics.png, confidence.png, samples.png."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.data.example import Example, Score
from medvqa.evaluation.contact_sheet import DPI, draw_samples
from medvqa.evaluation.figure import SERIES, draw_confidence, new_figure, own_style
from medvqa.evaluation.phase_scores import Evaluation
from medvqa.evaluation.score import GROUPS, SHOWN
from medvqa.tracking.record import read_json, read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

log = logging.getLogger(__name__)

BLUE, ORANGE, GREEN, PINK = SERIES[:4]
STYLES = {
    "exact_match": (BLUE, "o"),
    "f1": (ORANGE, "s"),
    "closed_accuracy": (PINK, "D"),
    "bertscore_f1": (GREEN, "^"),
}
GREY, SHADE = "#666666", "#F0F0F0"


def draw_pictures(
    directory: Path,
    evaluations: Sequence[Evaluation],
    sets: Mapping[str, Sequence[Example]],
    *,
    seed: int,
) -> dict[str, Path]:
    """Draw what the run's files show; return the pictures by name.

    A picture that cannot be drawn costs an error in the log, not the hours behind it. Without an
    evaluation set there is only the loss.

    Args:
        directory: Run directory, with metrics.jsonl and the final predictions.
        evaluations: All of the run, in the order of `read_evaluations`.
        sets: Evaluation examples by set; samples are of the first.
        seed: Chooses the samples.
    """
    plans = _plans(directory, evaluations, sets, seed)
    paths = {name: directory / f"{name}.png" for name in plans}
    written = {}
    with ThreadPoolExecutor() as pool:  # a picture is compressed while the next one is drawn
        for name, draw in reversed(plans.items()):
            with _going_on(paths[name]), own_style():
                written[name] = pool.submit(_write, rendered(draw(), name), paths[name])
    drawn = {}
    for name in filter(written.get, plans):
        with _going_on(paths[name]):
            written[name].result()
            drawn[name] = paths[name]
    return drawn


@contextmanager
def _going_on(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception:
        log.exception("%s could not be drawn; the run's numbers are not concerned", path.name)


def _plans(
    directory: Path,
    evaluations: Sequence[Evaluation],
    sets: Mapping[str, Sequence[Example]],
    seed: int,
) -> "dict[str, Callable[[], Figure]]":
    """Return what draws each picture for which the run has files."""
    plans: dict[str, Callable[[], Figure]] = {}
    if (directory / "metrics.jsonl").is_file():  # a run that only evaluates has no loss
        plans["loss"] = lambda: draw_loss(read_lines(directory / "metrics.jsonl"))
    if sets:
        name, examples = next(iter(sets.items()))
        rows = read_lines(directory / "evaluation" / "final" / name / "predictions.jsonl")
        plans["metrics"] = lambda: draw_metrics(evaluations)
        if curves := confidence_curves(directory, name):
            plans["confidence"] = lambda: draw_confidence(curves)
        plans["samples"] = lambda: draw_samples(rows, examples, set_name=name, seed=seed)
    return plans


def confidence_curves(directory: Path, set_name: str) -> dict[str, Any]:
    """Return the curves of the base and the final model on one set, where they are known."""
    curves = {}
    for phase in ("zero_shot", "final"):
        stored = read_json(directory / "evaluation" / phase / set_name / "metrics.json")
        if own := stored.get("confidence", {}).get("overall"):
            curves[phase_name(phase)] = own
    return curves


def rendered(figure: "Figure", name: str) -> "Image.Image":
    """Return the figure's pixels; glyphs that no font has are one line in the log."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(DPI)
    canvas: Any = FigureCanvasAgg(figure)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        canvas.draw()  # once; `savefig` draws every figure twice
    texts = {str(warning.message) for warning in caught}
    glyphs = {text for text in texts if "missing from font" in text}
    if glyphs:
        line = "%s shows %d characters as boxes: no font; install one (Chinese: fonts-noto-cjk)"
        log.info(line, f"{name}.png", len(glyphs))
    for text in texts - glyphs:
        log.warning("%s.png: %s", name, text)
    pixels = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    return pixels.convert("RGB")


def _write(pixels: "Image.Image", path: Path) -> None:
    """Write a PNG, whole or not at all."""
    partial = path.with_name(f".{path.name}")
    pixels.save(partial, format="png", dpi=(DPI, DPI), compress_level=1)
    partial.replace(path)


def draw_loss(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw loss and learning rate over the optimiser steps, stages shaded in turn.

    Args:
        rows: Lines of metrics.jsonl.
    """
    figure, axes = new_figure(9, 5, nrows=2, sharex=True, height_ratios=[3, 1])
    top, bottom = axes[:, 0]
    steps = [int(row["step"]) for row in rows]
    losses = [float(row["loss"]) for row in rows]
    window = max(3, len(rows) // 20)  # short runs keep their shape
    top.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=1, label="each step")
    label = f"running mean of {window} steps"
    top.plot(steps, smoothed(losses, window), color=BLUE, linewidth=2, label=label)
    top.set(ylabel="loss per answer token (nats)", ylim=(0, None))
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    rates = [float(row["learning_rate"]) for row in rows]
    bottom.plot(steps, rates, color=ORANGE, linewidth=1.5)
    bottom.set(ylabel="learning rate", ylim=(0, None))
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    bottom.set_xlabel("optimiser step")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    bottom.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
    _shade_stages(top, bottom, rows)
    return figure


def _shade_stages(top: "Axes", bottom: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """Shade every other stage and write each one's name above the span that it takes."""
    spans = [
        (name, [int(row["step"]) for row in members])
        for name, members in groupby(rows, key=lambda row: row["stage"])
    ]
    # A label of this many characters fits above its span; longer ones are all turned.
    crowded = any(len(name) + 9 > 110 * len(steps) / len(rows) for name, steps in spans)
    turned: dict[str, Any] = {"ha": "left", "rotation": 35} if crowded else {"ha": "center"}
    for number, (name, steps) in enumerate(spans):
        first, last = steps[0] - 0.5, steps[-1] + 0.5
        for axes in (top, bottom):
            if number % 2:
                axes.axvspan(first, last, color=SHADE, zorder=0, linewidth=0)
            if number:
                axes.axvline(first, color=GREY, linewidth=0.8, linestyle=":")
        label = f"{name} ({len(steps)})" if crowded else f"{name} ({len(steps)} steps)"
        top.annotate(label, ((first + last) / 2, 1.0), xycoords=("data", "axes fraction"),
                     xytext=(0, 4), textcoords="offset points", va="bottom", fontsize=9,
                     parse_math=False, **turned)  # fmt: skip


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the last `window` values at each one, of fewer at the start.

    A value that is not finite leaves a gap at its own step and is left out of the means.
    """
    means = []
    for end, value in enumerate(values, start=1):
        finite = [v for v in values[max(0, end - window) : end] if math.isfinite(v)]
        means.append(math.fsum(finite) / len(finite) if math.isfinite(value) else math.nan)
    return means


def draw_metrics(evaluations: Sequence[Evaluation]) -> "Figure":
    """Draw means with 95 % intervals: one row of panels per set, one panel per question type."""
    by_set: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_set.setdefault(evaluation.set_name, []).append(evaluation)
    heights = [1.1 + 0.62 * len(members) for members in by_set.values()]
    shape = {"nrows": len(by_set), "ncols": len(GROUPS), "height_ratios": heights}
    figure, grid = new_figure(12, sum(heights) + 0.5, sharex=True, **shape)
    for panels, (name, members) in zip(grid, by_set.items(), strict=True):
        for axes, group in zip(panels, GROUPS, strict=True):
            _draw_group(axes, group, members)
        panels[0].set_ylabel(name, fontsize=11, parse_math=False)
        panels[0].set_yticks(range(len(members)), [phase_name(e.phase) for e in members])
    for axes in grid[-1]:
        axes.set_xlabel("score (0 to 1)")
    handles = {h.get_label(): h for axes in grid.flat for h in axes.get_legend_handles_labels()[0]}
    shown = [handles[label] for label in SHOWN.values() if label in handles]
    figure.legend(handles=shown, loc="outside lower center", ncols=len(shown), frameon=False)
    figure.suptitle("mean with 95 % interval (over pictures)", fontsize=10, color=GREY)
    return figure


def _draw_group(axes: "Axes", group: str, members: Sequence[Evaluation]) -> None:
    """Draw one panel; the last phase comes with its numbers."""
    shown = [
        metric
        for metric in SHOWN
        if metric in STYLES
        and any(metric in e.summary.get(group, {}) for e in members)
        and (metric != "closed_accuracy" or group == "closed")  # elsewhere of other questions
    ]
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(len(members) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6, alpha=1)
    counts = {s.num_examples for e in members for m, s in e.summary.get(group, {}).items()
              if m == "exact_match"}  # fmt: skip
    if not counts:
        axes.set_title(f"{group}: no such question", fontsize=10, color=GREY)
        return
    axes.set_title(f"{group} (n = {' or '.join(map(str, sorted(counts)))})", fontsize=10)
    for row, evaluation in enumerate(members):
        if evaluation.phase == "final":
            axes.axhspan(row - 0.5, row + 0.5, color=SHADE, zorder=0, linewidth=0)
        for position, metric in enumerate(shown):
            score = evaluation.summary.get(group, {}).get(metric)
            if score is not None:
                y = row + (position - (len(shown) - 1) / 2) * 0.8 / len(shown)
                label = SHOWN[metric] if row == 0 else None
                is_named = evaluation.phase == "final"
                _draw_score(axes, score, y, STYLES[metric], label=label, is_named=is_named)


def _draw_score(
    axes: "Axes",
    score: Score,
    y: float,
    style: tuple[str, str],
    *,
    label: str | None,
    is_named: bool,
) -> None:
    colour, marker = style
    # Rounding must not make an error bar negative.
    sides = [[max(0.0, score.mean - score.low)], [max(0.0, score.high - score.mean)]]
    axes.errorbar(score.mean, y, xerr=sides, fmt=marker, color=colour, markersize=4.5,
                  linewidth=1.4, label=label)  # fmt: skip
    if is_named:  # right of the interval, or left of one that reaches the right edge
        x, offset, side = (score.high, 4, "left") if score.high < 0.85 else (score.low, -4, "right")
        axes.annotate(f"{score.mean:.3f}", (x, y), xytext=(offset, 0), textcoords="offset points",
                      ha=side, va="center", fontsize=7.5)  # fmt: skip


def phase_name(phase: str) -> str:
    """Return a phase as an axis shows it: `after_open` -> `after open`, long ones shortened."""
    name = phase.replace("_", " ")
    return name if len(name) <= 24 else f"{name[:23]}…"
