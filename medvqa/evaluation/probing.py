"""Ask the probes of every set, score them and write their records beside the normal answers."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.evaluation import BertScoreConfig, EvaluationConfig, ProbeName
from medvqa.data.example import Example, Prediction, Score
from medvqa.evaluation.answering import Answerer
from medvqa.evaluation.choice import read_choice
from medvqa.evaluation.evaluate import Evaluator, stored, to_predictions
from medvqa.evaluation.generate import Answer
from medvqa.evaluation.metrics import exact_match, yes_or_no
from medvqa.evaluation.probed import MEASURES, probe_scores
from medvqa.evaluation.probes import PROBES, ProbeQuestion, probe_questions
from medvqa.evaluation.rephrasing import all_rephrased
from medvqa.evaluation.score import ItemScores, cell, score_predictions
from medvqa.tracking.record import read_json, read_lines, write_json, write_lines
from medvqa.tracking.shape import checked
from medvqa.tracking.terminal import table

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

DENIAL = re.compile(
    r"\b(no|not|non|none|nothing|nowhere|never|neither|without|absent|cannot|unable|unknown|unclear"
    r"|unsure|uncertain|invalid|impossible|n/?a)\b|n['\u2019]t\b",
    re.IGNORECASE,
)


def probe_rows(
    questions: Sequence[ProbeQuestion],
    answers: Sequence[Answer],
    normal: Mapping[str, Mapping[str, Any]],
    config: EvaluationConfig,
) -> list[dict[str, Any]]:
    """Return one row per question of a probe: question, answer, and what the answer shows.

    `normal` has the rows of predictions.jsonl by id, of the questions that the probe was made from.
    """
    predictions = to_predictions([question.example for question in questions], answers)
    plain = replace(config, bertscore=BertScoreConfig(enabled=False), protocols=[])
    items = score_predictions(predictions, plain, device="cpu").items
    rows = []
    for question, prediction, item in zip(questions, predictions, items, strict=True):
        original = normal.get(question.original_id)
        shown = asdict(replace(prediction, cluster=question.cluster))
        values: dict[str, Any] = {
            "original_id": question.original_id,
            "falsehood": question.falsehood,
            "images": [image.name for image in question.example.images],
            "exact_match": item.exact_match,
            "affirms": _affirms(question.falsehood, prediction.prediction, item)
            if question.falsehood
            else None,
            "changed": None,
            "normal_prediction": None,
            "normal_exact_match": None,
        }
        if original:
            text = str(original["prediction"])
            values["normal_prediction"] = text
            values["normal_exact_match"] = original["exact_match"]
            if prediction.options in ((), tuple(original["options"])):
                values["changed"] = not _same(prediction, text, config)
        rows.append({**shown, **values})
    return rows


def _same(prediction: Prediction, text: str, config: EvaluationConfig) -> bool:
    """Return whether the answer equals the one to the original question."""
    if prediction.options:
        both = (read_choice(one, prediction.options) for one in (prediction.prediction, text))
        return len({choice.place for choice in both}) == 1
    return exact_match(prediction.prediction, [text], config.normalizer)


def _affirms(falsehood: str, answer: str, item: ItemScores) -> bool:
    """Return whether the answer affirms what is false in the question."""
    if falsehood == "option":
        return not item.exact_match and not item.nearest_option
    if falsehood == "open":
        return bool(answer.strip()) and not DENIAL.search(answer)
    return yes_or_no(answer) == {"yes": "yes", "closed": "yes", "no": "no"}[falsehood]


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
    stored = checked(read_json(path), ProbeResult, path)
    scores = {name: Score(**score) for name, score in stored["scores"].items()}
    values = {name: value for name, value in stored.items() if name in ProbeResult.__annotations__}
    return ProbeResult(**values | {"scores": scores})


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
        result = replace(result, scores=probe_scores([rows]))
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
