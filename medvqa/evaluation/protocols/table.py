"""The protocols by name, and the tables that `medvqa score --protocol` prints."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medvqa.config.evaluation import ProtocolName
from medvqa.data.example import Score
from medvqa.evaluation.protocols import (
    llava_med,
    lmms_eval,
    medevalkit,
    medico,
    medvqa,
    multiple_choice,
    seed,
    substring,
)
from medvqa.evaluation.protocols.protocol import (
    Protocol,
)

if TYPE_CHECKING:
    from rich.table import Table

Scores = Mapping[str, Score]
KINDS = ("closed", "open", "overall")
PROTOCOLS: dict[ProtocolName, Protocol] = {
    ProtocolName.seed: seed.PROTOCOL,
    ProtocolName.llava_med: llava_med.PROTOCOL,
    ProtocolName.medevalkit: medevalkit.PROTOCOL,
    ProtocolName.lmms_eval: lmms_eval.PROTOCOL,
    ProtocolName.substring: substring.PROTOCOL,
    ProtocolName.multiple_choice: multiple_choice.PROTOCOL,
    ProtocolName.medico: medico.PROTOCOL,
    ProtocolName.medvqa: medvqa.PROTOCOL,
}


def protocol_table(
    protocol: Protocol, scores: Scores, gain: Scores | None, *, title: str
) -> "Table":
    """Return one protocol's metrics: value with interval and n, and the gain."""
    from rich.table import Table

    columns = [f"{title}: {protocol.name}", "value [95 % interval]"]
    table = Table(*columns, *(["gain"] if gain is not None else []))
    for metric, score in scores.items():
        change = [_gain(protocol, gain.get(metric))] if gain is not None else []
        table.add_row(metric, protocol.show(score), *change)
    return table


def overview_table(
    scores: Mapping[str, Scores], gain: Mapping[str, Scores] | None, *, title: str
) -> "Table":
    """Return one row per protocol: its closed, open and overall metric under their own names."""
    from rich.table import Table

    table = Table("protocol", *KINDS, title=title, title_justify="left")
    for name, values in scores.items():
        protocol = PROTOCOLS[ProtocolName(name)]
        cells = []
        for metric in protocol.shown:
            if metric is None or metric not in values:
                cells.append("-")
                continue
            lines = [metric, protocol.show(values[metric])]
            if f"{metric} (judge)" in values:
                lines += [f"{metric} (judge)", protocol.show(values[f"{metric} (judge)"])]
            if gain is not None:
                lines.append(_gain(protocol, gain[name].get(metric)))
            cells.append("\n".join(lines))
        table.add_row(name, *cells)
        table.add_section()
    return table


def _gain(protocol: Protocol, score: Score | None) -> str:
    if score is None:
        return "-"
    mean, low, high = (protocol.unit * value for value in (score.mean, score.low, score.high))
    digits = protocol.digits
    return f"gain {mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def description(protocol: Protocol, *, has_judge: bool = False) -> list[str]:
    """Return what a protocol's numbers mean: rule, source, published rows, what still differs."""
    lines = [f"{protocol.name}: open/closed by {protocol.split}", f"  source: {protocol.source}"]
    for row in protocol.published:
        comparable = not row.has_judge or has_judge
        verb = "may stand beside" if comparable else "not comparable (a language model judged)"
        values = "; ".join(f"{data} {value}" for data, value in row.values.items())
        lines.append(f"  {verb}: {row.model}: {values} ({row.source})")
    if protocol.remaining:
        lines.append(f"  may still differ: {protocol.remaining}")
    if protocol.unavailable():
        lines.append(f"  not computed: {protocol.unavailable()}")
    return lines
