"""What is known of a run before it starts, and tables: all of one cell, or one row per cell."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from medvqa.models.loaded import feature_bytes
from medvqa.preflight.downloads import Download
from medvqa.preflight.gpu_memory import MemoryEstimate
from medvqa.preflight.probe import Probe
from medvqa.preflight.tokens import TokenReport
from medvqa.tracking.terminal import table

if TYPE_CHECKING:
    from rich.table import Table

GIGABYTE = 1e9
PUBLISHED = "the published runs see 320 of 12,149 (2.6 %) and 400 or 480 of 6,666 (6.0, 7.2 %)"
COLUMNS = (
    *("cell", "samples", "tokens median/longest", "too long", "steps", "pool seen"),
    *("memory", "time", "shared pictures", "detectable", "verdict"),
)


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """The options of the command.

    Attributes:
        at_most: Training samples whose tokens are counted; of more, a seeded sample.
        probe: Whether to load the model for a few steps; None where there is a GPU.
        discordant_fraction: Share of questions that exactly one of two runs has right.
        design_effect: Variance factor of questions that share a picture.
    """

    at_most: int
    probe: bool | None
    discordant_fraction: float
    design_effect: float


@dataclass(frozen=True, kw_only=True)
class CellReport:
    """One row of the table; None stands for what is unknown, and `notes` give the reason.

    Attributes:
        swept: Overrides that tell this cell from the others.
        samples: Source -> answer type -> training samples, after what the gate drops.
        tokens: Of the training pool, and of each evaluation set under its name.
        detectable: Group of the first evaluation set -> (questions, smallest difference found with
            80 % power at level 5 %, or None).
        problems: Why the run would fail.
    """

    swept: tuple[str, ...]
    samples: Mapping[str, Mapping[str, int]]
    num_samples: int
    num_dropped: int
    num_steps: int
    batch_size: int
    num_seen: int
    tokens: Mapping[str, TokenReport]
    memory: MemoryEstimate | None
    probe: Probe | None
    seconds: float | None
    downloads: tuple[Download, ...]
    free_bytes: int
    written_bytes: int | None
    contamination: Mapping[str, Any]
    detectable: Mapping[str, tuple[int, float | None]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self) | {"memory_bytes": None if self.memory is None else self.memory.total}


def grid_table(reports: Sequence[CellReport]) -> "Table":
    """Return one row per cell."""
    return table(f"preflight of {len(reports)} cell(s)", COLUMNS, map(_row, reports))


def _row(report: CellReport) -> list[str]:
    tokens = report.tokens.get("training")
    about = "about " if tokens and tokens.is_estimate else ""
    lengths = tokens and f"{about}{tokens.quantiles['0.5']:,}/{tokens.longest:,}"
    return [
        " ".join(report.swept) or "-",
        f"{report.num_samples:,}",
        lengths or "unknown",
        f"{tokens.num_too_long:,}" if tokens else "unknown",
        str(report.num_steps),
        _seen(report),
        _gigabytes(report.memory.total) if report.memory else "unknown",
        _time(report),
        _shared(report),
        _effect(report.detectable["overall"][1]) if report.detectable else "-",
        "would fail" if report.problems else "ok",
    ]


def cell_table(report: CellReport, assumptions: Assumptions) -> "Table":
    """Return everything about one cell."""
    rows = [
        (f"samples of {source}", ", ".join(f"{n:,} {kind}" for kind, n in sorted(counts.items())))
        for source, counts in report.samples.items()
    ]
    if report.num_dropped:
        rows.append(("dropped by the gate", f"{report.num_dropped:,} samples"))
    rows += [(f"tokens of {name}", _tokens(tokens)) for name, tokens in report.tokens.items()]
    written = report.written_bytes
    rows += [
        ("steps", f"{report.num_steps:,} x {report.batch_size} samples"),
        ("pool seen", f"{_seen(report)}; {PUBLISHED}"),
        ("memory", _memory(report)),
        ("time", _time(report)),
        (
            "disk",
            f"{f'{_gigabytes(written)} written, ' if written is not None else ''}"
            f"{_gigabytes(report.free_bytes)} free",
        ),
    ]
    for download in report.downloads:
        size = "size unknown" if download.num_bytes is None else _gigabytes(download.num_bytes)
        state = "in the cache" if download.is_cached else "to be fetched"
        rows.append((f"{download.kind} {download.name}", f"{size}, {state}"))
    action = report.contamination["action"]
    rows.append(("shared pictures", f"{_shared(report)}; contamination={action}"))
    assumed = (
        f"80 % power, level 5 %, {assumptions.discordant_fraction:.0%} discordant and design "
        f"effect {assumptions.design_effect:g} assumed"
    )
    rows += [
        (f"detectable, {group}", f"{_effect(effect)} on {number:,} questions ({assumed})")
        for group, (number, effect) in report.detectable.items()
    ]
    return table("preflight", ("", ""), rows, show_header=False)


def _tokens(tokens: TokenReport) -> str:
    labels = {"0": "shortest", "0.5": "median", "0.95": "95 %", "1": "longest"}
    lengths = ", ".join(f"{label} {tokens.quantiles[q]:,}" for q, label in labels.items())
    counted = f"all {tokens.num_samples:,}"
    if tokens.num_counted < tokens.num_samples:
        counted = f"a seeded sample of {tokens.num_counted:,} of {tokens.num_samples:,}"
    too_long = f"{tokens.num_too_long:,} too long: {', '.join(tokens.too_long)}"
    return (
        f"{'estimated: ' if tokens.is_estimate else ''}{lengths}; "
        f"{tokens.mean_image_tokens:.0f} of images on average; counted {counted}; "
        f"{too_long if tokens.num_too_long else 'none too long'}"
    )


def _seen(report: CellReport) -> str:
    share = report.num_seen / report.num_samples
    return f"{report.num_seen:,} of {report.num_samples:,} ({share:.1%})"


def _memory(report: CellReport) -> str:
    memory = report.memory
    if memory is None:
        return "unknown"
    parts = {
        "weights": memory.weights,
        "adapter and optimiser": memory.adapter,
        "activations": memory.activations,
        "logits": memory.logits,
    }
    total = " + ".join(f"{_gigabytes(size)} {name}" for name, size in parts.items() if size)
    batch = f"{memory.micro_batch_size} samples at once, {memory.engine} engine"
    if memory.engine == "fused":
        batch += f", and up to {_gigabytes(feature_bytes())} of picture features that come again"
    return f"about {_gigabytes(memory.total)} = {total}; {batch}"


def _gigabytes(size: int) -> str:
    return f"{size / GIGABYTE:.1f} GB" if size >= GIGABYTE / 10 else f"{size / 1e6:.1f} MB"


def _time(report: CellReport) -> str:
    if report.seconds is None or report.probe is None:
        return "unknown"
    minutes, seconds = divmod(round(report.seconds), 60)
    return f"{minutes} min {seconds} s ({report.probe.step_seconds:.2f} s per step, measured)"


def _shared(report: CellReport) -> str:
    sets = report.contamination["sets"].items()
    return ", ".join(f"{name} {s['image_overlap']:.0%}" for name, s in sets) or "no evaluation set"


def _effect(effect: float | None) -> str:
    return "none" if effect is None else f"{100 * effect:.1f} points"
