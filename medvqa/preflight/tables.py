"""Reports as tables: all of one cell, or a row a cell."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medvqa.preflight.cell import Assumptions, CellReport
from medvqa.preflight.tokens import TokenReport

if TYPE_CHECKING:
    from rich.table import Table

GIGABYTE = 1e9
PUBLISHED = "the published runs see 320 of 12,149 (2.6 %) and 400 or 480 of 6,666 (6.0, 7.2 %)"


def grid_table(reports: Sequence[CellReport]) -> "Table":
    """Return a row a cell."""
    from rich.table import Table

    table = Table(
        *("cell", "samples", "tokens median/longest", "too long", "steps", "pool seen"),
        *("memory", "time", "shared pictures", "detectable", "verdict"),
        title=f"preflight of {len(reports)} cell(s)",
        title_justify="left",
    )
    for report in reports:
        tokens = report.tokens.get("training")
        table.add_row(
            " ".join(report.swept) or "-",
            f"{report.num_samples:,}",
            f"{_about(tokens)}{tokens.quantiles[0.5]:,}/{tokens.longest:,}"
            if tokens
            else "unknown",
            f"{tokens.num_too_long:,}" if tokens else "unknown",
            str(report.num_steps),
            _seen(report),
            _gigabytes(report.memory.total) if report.memory else "unknown",
            _time(report),
            _shared(report),
            _effect(report.detectable["overall"][1]) if report.detectable else "-",
            "would fail" if report.problems else "ok",
        )
    return table


def cell_table(report: CellReport, assumptions: Assumptions) -> "Table":
    """Return everything about one cell."""
    from rich.table import Table

    table = Table("", "", show_header=False, title="preflight", title_justify="left")
    for source, counts in report.samples.items():
        types = ", ".join(f"{n:,} {kind}" for kind, n in sorted(counts.items()))
        table.add_row(f"samples of {source}", types)
    if report.num_dropped:
        table.add_row("dropped by the gate", f"{report.num_dropped:,} samples")
    for name, tokens in report.tokens.items():
        table.add_row(f"tokens of {name}", _tokens(tokens))
    table.add_row("steps", f"{report.num_steps:,} x {report.batch_size} samples")
    table.add_row(
        "pool seen",
        f"{_seen(report)}; {PUBLISHED}",
    )
    table.add_row("memory", _memory(report))
    table.add_row("time", _time(report))
    table.add_row("disk", _disk(report))
    for download in report.downloads:
        size = "size unknown" if download.num_bytes is None else _gigabytes(download.num_bytes)
        state = "in the cache" if download.is_cached else "to be fetched"
        table.add_row(f"{download.kind} {download.name}", f"{size}, {state}")
    table.add_row(
        "shared pictures", f"{_shared(report)}; contamination={report.contamination['action']}"
    )
    for group, (num_questions, effect) in report.detectable.items():
        table.add_row(
            f"detectable, {group}",
            f"{_effect(effect)} on {num_questions:,} questions (80 % power, level 5 %, "
            f"{assumptions.discordant_fraction:.0%} discordant and design effect "
            f"{assumptions.design_effect:g} assumed)",
        )
    return table


def _tokens(tokens: TokenReport) -> str:
    marks = ", ".join(
        f"{label} {tokens.quantiles[q]:,}"
        for q, label in ((0.0, "least"), (0.5, "median"), (0.95, "95 %"), (1.0, "longest"))
    )
    whole = tokens.num_counted == tokens.num_samples
    counted = f"all {tokens.num_samples:,}" if whole else (
        f"a seeded sample of {tokens.num_counted:,} of {tokens.num_samples:,}"
    )  # fmt: skip
    too_long = f"; {tokens.num_too_long:,} too long: {', '.join(tokens.too_long)}"
    return (
        f"{_about(tokens)}{marks}; "
        f"{tokens.mean_image_tokens:.0f} of images on average; counted {counted}"
        f"{too_long if tokens.num_too_long else '; none too long'}"
    )


def _about(tokens: TokenReport) -> str:
    return "about " if tokens.is_estimate else ""


def _seen(report: CellReport) -> str:
    share = report.num_seen / report.num_samples
    return f"{report.num_seen:,} of {report.num_samples:,} ({share:.1%})"


def _memory(report: CellReport) -> str:
    memory = report.memory
    if memory is None:
        return "unknown"
    parts = (
        (memory.weights, "weights"),
        (memory.adapter, "adapter and optimiser"),
        (memory.activations, "activations"),
        (memory.logits, "logits"),
    )
    return (
        f"about {_gigabytes(memory.total)} = "
        + " + ".join(f"{_gigabytes(size)} {name}" for size, name in parts if size)
        + f"; {memory.micro_batch_size} samples at once, {memory.engine} engine"
    )


def _disk(report: CellReport) -> str:
    written = (
        "" if report.written_bytes is None else f"{_gigabytes(report.written_bytes)} written, "
    )
    return f"{written}{_gigabytes(report.free_bytes)} free"


def _gigabytes(size: int) -> str:
    return f"{size / GIGABYTE:.1f} GB" if size >= GIGABYTE / 10 else f"{size / 1e6:.1f} MB"


def _time(report: CellReport) -> str:
    if report.seconds is None or report.probe is None:
        return "unknown"
    minutes, seconds = divmod(round(report.seconds), 60)
    return f"{minutes} min {seconds} s ({report.probe.step_seconds:.2f} s a step, measured)"


def _shared(report: CellReport) -> str:
    shares = [
        f"{name} {found['image_overlap']:.0%}"
        for name, found in report.contamination["sets"].items()
    ]
    return ", ".join(shares) or "no evaluation set"


def _effect(effect: float | None) -> str:
    return "none" if effect is None else f"{100 * effect:.1f} points"
