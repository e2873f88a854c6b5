"""An answers file -> its scores by any protocol, with their tables; the command `medvqa score`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medvqa.config.errors import UserError
from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig, Normalizer, ProtocolName
from medvqa.data.example import Prediction
from medvqa.evaluation.predictions import (
    Answers,
    aligned,
    parse_columns,
    read_predictions,
    yes_no_type,
)
from medvqa.evaluation.protocols.judge import parse_judge
from medvqa.evaluation.protocols.protocol import score_protocol
from medvqa.evaluation.protocols.table import (
    PROTOCOLS,
    description,
    overview_table,
    protocol_table,
)
from medvqa.evaluation.score import score_predictions, summary_table
from medvqa.tracking.terminal import html_text, plain_text

if TYPE_CHECKING:
    from rich.table import Table
import sys

from medvqa.config.command_line import CommandParser
from medvqa.tracking.record import write_json
from medvqa.tracking.terminal import console

JUDGED = ProtocolName.medevalkit
DEFAULTS = EvaluationConfig()


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How an answers file is scored.

    Attributes:
        file: Answers: JSON Lines, a JSON array, CSV or TSV.
        protocol: A name, several with commas, or `all`.
        types: How closed questions are recognised: by `labels`, or by a reference of `yes_no`.
        against: A second answers file; adds the gain over that file.
        columns: `prediction=NAME,reference=NAME,...`: the file's own column names.
        judge: `endpoint=URL` and `model=NAME` of a served model that judges open answers.
        normalizer: Of answers and references; of the protocol `medvqa`, as what follows.
        bertscore: `minilm`, `off`, a hub id or a directory.
        layers: BERTScore's layer, for a directory.
        tolerance: Relative, of numeric exact match.
    """

    file: Path
    protocol: str = "medvqa"
    types: Literal["labels", "yes_no"] | None = None
    against: Path | None = None
    columns: str | None = None
    judge: Sequence[str] | None = None
    normalizer: str = DEFAULTS.normalizer.value
    bertscore: str = "minilm"
    layers: int | None = None
    tolerance: float = DEFAULTS.numeric_tolerance

    def __post_init__(self) -> None:
        """Check what the command line restricts by its choices."""
        choices = {"types": (None, "labels", "yes_no"), "normalizer": [n.value for n in Normalizer]}
        for name in ("protocol", "columns"):
            if not isinstance(getattr(self, name), str | None):
                raise UserError(f"{name} is one text, such as 'seed,medvqa' or 'prediction=out'")
        is_number = isinstance(self.tolerance, int | float)
        if not is_number or not 0 <= self.tolerance < 1:  # as evaluation.numeric_tolerance
            raise UserError(f"--tolerance must be a share in [0, 1), got {self.tolerance}")
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"{name} is none of {', '.join(map(str, known))}")


@dataclass(frozen=True)
class FileScores:
    """Scores of a file; a notebook shows their table.

    Attributes:
        values: As `medvqa score --json` writes them: `summary` by group and metric, or
            `protocols` and `gains` by protocol and metric.
        table: For a terminal.
        lines: What the table leaves out, one remark per line.
    """

    values: dict[str, Any]
    table: "Table"
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([plain_text(self.table), *self.lines])

    def _repr_html_(self) -> str:
        return html_text(self.table, *self.lines)


def score_file(options: ScoreOptions) -> FileScores:
    """Score an answers file.

    Raises:
        UserError: If a file cannot be read, or an option names nothing that is known.
    """
    names = protocol_names(options.protocol)
    if options.judge and JUDGED not in names:
        raise UserError("--judge judges for --protocol medevalkit; name that protocol too")
    columns = parse_columns(options.columns) if options.columns else None
    answers = read_predictions(options.file, columns)
    others = None
    if options.against:
        others = aligned(answers, read_predictions(options.against, columns), options.against)
    if names == [ProtocolName.medvqa] and others is None:
        scores = _own_scores(answers, options)
    else:
        scores = _protocol_scores(names, answers, others, options)
    notes = [*_unused(options, scores), *answers.notes]
    return replace(scores, lines=[*scores.lines, *(f"note: {note}" for note in notes)])


def _unused(options: ScoreOptions, scores: FileScores) -> list[str]:
    """Return a remark on options that belong to our own scores alone."""
    given = {
        "--normalizer": options.normalizer != DEFAULTS.normalizer.value,
        "--tolerance": options.tolerance != DEFAULTS.numeric_tolerance,
    }
    names = " and ".join(name for name, is_given in given.items() if is_given)
    if not names or "summary" in scores.values:
        return []
    return [f"{names} not used: each protocol has its own rules"]


def protocol_names(text: str) -> list[ProtocolName]:
    """Return the protocols of `NAME,NAME` or `all`."""
    if text == "all":
        return list(ProtocolName)
    known = {name.value: name for name in ProtocolName}
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--protocol {unknown[0]!r} is none of {', '.join(known)}, all")
    return [known[name] for name in names]


def _own_scores(answers: Answers, options: ScoreOptions) -> FileScores:
    config = EvaluationConfig(
        normalizer=Normalizer(options.normalizer),
        numeric_tolerance=options.tolerance,
        bertscore=BertScoreConfig(
            enabled=options.bertscore != "off", model=options.bertscore, num_layers=options.layers
        ),
    )
    predictions = answers.predictions
    if options.types == "yes_no":
        predictions = [replace(p, answer_type=yes_no_type(p.references)) for p in predictions]
    scored = score_predictions(predictions, config, device="cpu")
    title = f"{options.file} ({options.normalizer})"
    summary = {g: {m: asdict(s) for m, s in ms.items()} for g, ms in scored.summary.items()}
    return FileScores(
        {"summary": summary, "bertscore": scored.bertscore},
        summary_table([("", scored.summary)], title=title),
    )


def _protocol_scores(
    names: list[ProtocolName],
    answers: Answers,
    others: list[Prediction] | None,
    options: ScoreOptions,
) -> FileScores:
    predictions = answers.predictions
    score = partial(score_protocol, types=options.types, num_samples=DEFAULTS.bootstrap_samples)
    scores = {name.value: score(PROTOCOLS[name], predictions) for name in names}
    gain = None
    if others is not None:
        gain = {n.value: score(PROTOCOLS[n], predictions, against=others) for n in names}
    lines: list[str] = []
    if options.judge and JUDGED in names:
        judge = parse_judge(options.judge, options.file)
        protocol = PROTOCOLS[JUDGED]
        judged, lines = judge.scores(protocol, predictions, options.types or protocol.types)
        scores[JUDGED.value] |= judged
    title = str(options.file)
    if len(names) > 1:
        table = overview_table(scores, gain, title=title)
    else:
        name = names[0]
        change = gain[name.value] if gain is not None else None
        table = protocol_table(PROTOCOLS[name], scores[name.value], change, title=title)
    for name in names:
        lines += description(PROTOCOLS[name], has_judge=bool(options.judge))
    values = {
        kind: {name: {m: asdict(s) for m, s in values.items()} for name, values in part.items()}
        for kind, part in (("protocols", scores), ("gains", gain or {}))
    }
    return FileScores(values, table, lines)


def main_score(argv: Sequence[str]) -> int:
    """Score an answers file and show the table."""
    options = vars(_parser().parse_args(argv))
    target = options.pop("json")
    answers = {path.resolve() for path in (options["file"], options["against"]) if path}
    if target and target.resolve() in answers:
        raise UserError(f"--json {target} would overwrite the answers; give another file")
    if target and target.is_dir():
        raise UserError(f"--json {target} is a directory; name a file")
    scores = score_file(ScoreOptions(**options))
    console().print(scores.table)
    sys.stdout.writelines(f"{line}\n" for line in scores.lines)
    if target:
        write_json(target, scores.values)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        main_score,
        {
            "medvqa score answers.jsonl": "by type of question",
            "medvqa score answers.csv --columns prediction=out,reference=gt": "other column names",
            "medvqa score answers.jsonl --protocol all": "one row per protocol",
            "medvqa score tuned.jsonl --protocol all --against base.jsonl": "and the gain",
        },
    )
    add = parser.group("answers")
    add("file", type=Path, help="answers: JSON Lines, a JSON array, CSV or TSV")
    add("--columns", metavar="FIELD=NAME,...", help="the file's own column names")
    add("--types", choices=["labels", "yes_no"], help="how closed questions are recognised")
    add("--against", type=Path, metavar="FILE", help="a second answers file; adds the gain over it")
    add = parser.group("scores")
    protocols = ", ".join(name.value for name in ProtocolName)
    add("--protocol", default="medvqa", metavar="NAME,...", help=f"{protocols}; or all")
    add("--normalizer", choices=[n.value for n in Normalizer], default=DEFAULTS.normalizer.value,
        help=f"of answers and references (default {DEFAULTS.normalizer.value})")  # fmt: skip
    add("--tolerance", type=float, default=DEFAULTS.numeric_tolerance, metavar="SHARE",
        help=f"relative, of numeric EM (default {DEFAULTS.numeric_tolerance:g})")  # fmt: skip
    add("--bertscore", default="minilm", metavar="MODEL",
        help="minilm (default), off, a hub id or a directory")  # fmt: skip
    add("--layers", type=int, metavar="N", help="BERTScore's layer, for a directory")
    add("--judge", nargs=2, metavar=("endpoint=URL", "model=NAME"),
        help="a served model that judges open answers, for the protocol medevalkit")  # fmt: skip
    add = parser.group("output")
    add("--json", type=Path, metavar="FILE", help="also write the scores there")
    return parser
