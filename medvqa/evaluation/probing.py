"""Ask the probes of every set, score them and write their records beside the normal answers."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medvqa.config.errors import UserError
from medvqa.config.evaluation import EvaluationConfig, ProbeName
from medvqa.data.example import Example, Score
from medvqa.evaluation.answering import Answerer
from medvqa.evaluation.evaluate import Evaluator, stored
from medvqa.evaluation.generate import Answer
from medvqa.evaluation.probe_rates import MEASURES, probe_rows, probe_scores
from medvqa.evaluation.probes import PROBES, ProbeQuestion, probe_questions
from medvqa.evaluation.rephrasing import all_rephrased
from medvqa.evaluation.score import cell
from medvqa.tracking.record import read_json, read_lines, write_json, write_lines
from medvqa.tracking.terminal import table

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """One probe on one set, as its metrics.json keeps it.

    Attributes:
        num_originals: Questions of the set.
        num_questions: Questions of the probe; 0 where it does not apply.
        reason: Why it does not apply; "" where it does.
        scores: Measure -> mean with interval, clustered by picture; see docs/confidence.md.
    """

    probe: str
    set_name: str
    step: int
    num_originals: int
    num_questions: int
    reason: str = ""
    scores: dict[str, Score] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """Return `eval/<set>/probes/<probe>/<measure>` -> mean, for a tracker."""
        place = f"eval/{self.set_name}/probes/{self.probe}"
        return {f"{place}/{name}": score.mean for name, score in self.scores.items()}


def ask_probes(evaluator: Evaluator, answer: Answerer, step: int) -> list[ProbeResult]:
    """Return the results of all configured probes; those on the disk are not asked again.

    The final answers to the same sets are on the disk already.
    """
    results = []
    for set_name, examples in evaluator.sets.items():
        every = probe_questions(evaluator.config.probes, examples, seed=evaluator.seed)
        for name, questions in every.items():
            place = probe_place(evaluator.directory, name.value, set_name)
            result = evaluator.ranks.first(stored, place, read_probe, len(questions))
            if result is None:
                answers = answer(place, [q.example for q in questions]) if questions else None
                outcome = (name, set_name, questions, answers, step)
                result = evaluator.ranks.first(_record, evaluator, place, outcome)
            results.append(result)
    return results


def more_questions(
    config: EvaluationConfig, examples: Sequence[Example], seed: int
) -> list[Example]:
    """Return what a set's examples add to the questions: probes and rephrasings.

    Blank pictures are left out: they are as large as those that they replace.
    """
    probes = probe_questions(config.probes, examples, seed=seed)
    questions = [
        own.example for name, each in probes.items() if name is not ProbeName.blank for own in each
    ]
    return [*questions, *all_rephrased(examples, config.rephrasings)]


def probe_place(directory: Path, probe: str, set_name: str) -> Path:
    """Return the directory of a probe's files on one set."""
    return directory / "evaluation" / "probes" / probe / set_name


def read_probes(directory: Path) -> list[ProbeResult]:
    """Return the probes of a run, in the order of `ProbeName`."""
    order = [name.value for name in ProbeName]
    paths = directory.glob("evaluation/probes/*/*/metrics.json")
    results = [read_probe(path) for path in paths]
    return sorted(results, key=lambda result: (result.set_name, order.index(result.probe)))


def read_probe(path: Path) -> ProbeResult:
    """Return the result that a metrics.json holds.

    Raises:
        UserError: If it is damaged.
    """
    stored = read_json(path)
    try:
        scores = {name: Score(**score) for name, score in stored.pop("scores").items()}
        return ProbeResult(**stored, scores=scores)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); say fresh=true to start over") from error


def _record(
    evaluator: Evaluator,
    place: Path,
    outcome: tuple[ProbeName, str, Sequence[ProbeQuestion], list[Answer] | None, int],
) -> ProbeResult:
    name, set_name, questions, answers, step = outcome
    result = ProbeResult(
        probe=name.value,
        set_name=set_name,
        step=step,
        num_originals=len(evaluator.sets[set_name]),
        num_questions=len(questions),
        reason="" if questions else PROBES[name][1],
    )
    if answers is None:
        log.warning("the %s probe asks nothing on %s: %s", name.value, set_name, result.reason)
    else:
        final = read_lines(evaluator.place("final", set_name) / "predictions.jsonl")
        normal = {row["id"]: row for row in final}
        rows = probe_rows(questions, answers, normal, evaluator.config)
        write_lines(place / "predictions.jsonl", rows)
        result = replace(result, scores=probe_scores(rows))
    write_json(place / "metrics.json", asdict(result))  # last: it says that the probe is whole
    return result


def probes_table(results: Sequence[ProbeResult], title: str) -> "Table":
    """Return a table with one row per probe: mean, interval and n of each measure."""
    shown = [name for name in MEASURES if any(name in result.scores for result in results)]
    rows = [
        (result.probe.replace("_", " "), *(cell(result.scores.get(name)) for name in shown))
        for result in results
    ]
    silent = [f"{r.probe.replace('_', ' ')}: not asked, {r.reason}" for r in results if r.reason]
    header = ("probe", *(MEASURES[name] for name in shown))
    return table(title, header, rows, caption="\n".join(silent) or None, caption_justify="left")
