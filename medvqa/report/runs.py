"""Run directories -> runs with their answers: read from files alone, damage named."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.evaluation.arrays import Array
from medvqa.evaluation.confidence import answer_confidence
from medvqa.evaluation.phase_scores import phase_place, read_answers
from medvqa.evaluation.score import GROUPS, SHOWN
from medvqa.report.stored import REQUIRED, Groups, Reported, Stored
from medvqa.sweep.job import State, read_status
from medvqa.sweep.status import sweep_json
from medvqa.tracking import record
from medvqa.tracking.files import is_locked
from medvqa.tracking.progress import track
from medvqa.tracking.shape import checked

DAMAGED, OUTDATED = "damaged", "outdated"
# Columns beside the metrics.
CONFIDENCE, OVERCONFIDENCE, AGREEMENT = "confidence", "overconfidence", "agreement"
MAX_DEPTH = 4  # of run directories below a given one


Entry = Mapping[str, Any]  # a job of sweep.json; empty for a run that no grid lists


@dataclass(frozen=True)
class Question:
    """What all runs are asked alike.

    Attributes:
        cluster: Identity of the picture(s).
    """

    id: str
    text: str
    references: tuple[str, ...]
    answer_type: str
    source: str
    split: str
    cluster: str


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One phase of a run on one set.

    Attributes:
        scores: Metric, `confidence` or `agreement` -> one value per question, NaN where there is
            none.
        means: (Group, metric) -> mean, as metrics.json says.
        protocol: How it was scored, as metrics.json says.
    """

    phase: str
    set_name: str
    step: int
    questions: tuple[Question, ...]
    texts: tuple[str, ...]
    scores: Mapping[str, Array]
    protocol: Mapping[str, Any]
    means: Mapping[tuple[str, str], float]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Id of a question -> its place."""
        return {question.id: row for row, question in enumerate(self.questions)}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory.

    Attributes:
        values: Its run.json; empty where nothing was started.
        state: As `medvqa status` says it, or `damaged`, or `outdated`: finished, but not with the
            config that the grid has now.
        error: One line, where something went wrong.
        overrides: What the command line said.
    """

    directory: Path
    values: Mapping[str, Any] = field(repr=False)
    state: str
    overrides: tuple[str, ...] = ()
    error: str | None = None
    answers: tuple[Answers, ...] = field(default=(), repr=False)

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config."""
        config: Mapping[str, Any] = self.values["config"]
        return config

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config["seed"])

    @property
    def is_finished(self) -> bool:
        """Whether it can be compared."""
        return self.state == record.FINISHED

    def answered(self, phase: str, set_name: str) -> Answers | None:
        """Return the answers of a phase on a set, if the run has them."""
        return self._by_phase.get((phase, set_name))

    @cached_property
    def _by_phase(self) -> dict[tuple[str, str], Answers]:
        return {(a.phase, a.set_name): a for a in self.answers}


def read_runs(places: Sequence[Path]) -> list[Run]:
    """Return the runs of directories of grids, of single runs, or of folders that hold them.

    Raises:
        UserError: If a place is missing, or nowhere is a run.
    """
    cells: dict[Path, tuple[Path, Entry]] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place} is no directory; give run directories or grids of them")
        if not (here := list(_cells(place))):
            raise UserError(f"{place} holds no run: no run.json and no sweep.json in it or below")
        for directory, entry in here:
            cells.setdefault(directory.resolve(), (directory, entry))
    interned: dict[Question, Question] = {}
    places_of_runs = track(list(cells.values()), description="reading runs")
    return [_read(directory, entry, interned) for directory, entry in places_of_runs]


def _cells(place: Path, depth: int = 0) -> Iterator[tuple[Path, Entry]]:
    """Yield where a run is or should be, with what a sweep.json says about it."""
    if (place / "sweep.json").is_file():
        for entry in sweep_json(place)["jobs"]:
            yield place / entry["directory"], entry
    elif (place / "run.json").is_file():
        yield place, {}
    elif depth < MAX_DEPTH:
        for below in sorted(p for p in place.iterdir() if p.is_dir()):
            if not below.name.startswith((".", "previous-")):
                yield from _cells(below, depth + 1)


def _read(directory: Path, entry: Entry, interned: dict[Question, Question]) -> Run:
    values: Mapping[str, Any] = {}
    answers: Sequence[Answers] = ()
    try:
        values = record.read_run(directory)
        state, error = _state(directory, entry, values)
        if state in (record.FINISHED, record.DIVERGED):
            checked(values, Reported, directory / "run.json")
        if state == record.FINISHED:
            places = directory.glob("evaluation/*/*/metrics.json")
            answers = [_answers(path.parent, interned) for path in places]
            if not answers:
                raise UserError(f"{directory} is finished but holds no evaluation")
    except UserError as damage:
        state, error = DAMAGED, str(damage)
    return Run(
        directory=directory,
        values=values,
        state=state,
        overrides=tuple((entry or values).get("overrides", ())),
        error=error,
        answers=tuple(sorted(answers, key=lambda a: (a.set_name, phase_place(a.phase, a.step)))),
    )


def _state(directory: Path, entry: Entry, values: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return how the run stands: run.json says what is done, status.json how the rest ended."""
    state, error = values.get("state"), values.get("error")
    if state == record.FINISHED:
        if not entry or values.get("run_id") == entry["run_id"]:
            return record.FINISHED, None
        return OUTDATED, "finished with another config than the grid's; the same command runs it"
    if state == record.RUNNING and is_locked(directory):
        return record.RUNNING, None
    status = read_status(directory)
    if status.state in (State.failed, State.diverged, State.killed, State.timed_out):
        return status.state.value, status.error or error
    if state is None:
        return State.waiting.value, None
    return (record.INTERRUPTED if state == record.RUNNING else state), error


def _answers(place: Path, interned: dict[Question, Question]) -> Answers:
    """Return one phase on one set; all runs share one copy of each question.

    Raises:
        UserError: Naming the file, and the line where there is one.
    """
    import numpy as np

    stored = record.read_json(place / "metrics.json")
    for kind in (Stored, Groups):
        checked(stored, kind, place / "metrics.json")
    path = place / "predictions.jsonl"
    rows = list(_prediction_rows(path))
    expected = stored["summary"]["overall"]["exact_match"]["num_examples"]
    if len(rows) != expected:
        raise UserError(f"{path} is damaged: {len(rows)} predictions, metrics.json has {expected}")
    questions = [_question(row) for row in rows]
    return Answers(
        phase=stored["phase"],
        set_name=stored["set_name"],
        step=stored["step"],
        questions=tuple(interned.setdefault(question, question) for question in questions),
        texts=tuple(str(row["prediction"]) for row in rows),
        # None becomes NaN.
        scores={
            metric: np.array([row.get(metric) for row in rows], dtype=float)
            for metric in (*SHOWN, CONFIDENCE, OVERCONFIDENCE, AGREEMENT)
        },
        means={
            (group, metric): float(score["mean"])
            for group, scores in stored["summary"].items()
            for metric, score in scores.items()
            if group in GROUPS and metric in SHOWN
        },
        protocol={k: v for k, v in stored.items() if k not in ("summary", "phase", "set_name")},
    )


def _question(row: Mapping[str, Any]) -> Question:
    values = {**row, "text": row["question"], "references": tuple(row["references"])}
    return Question(**{name: values[name] for name in Question.__annotations__})


def _prediction_rows(path: Path) -> Iterator[dict[str, Any]]:
    for row in read_answers(path, *REQUIRED):
        if (logprob := row.get("logprob_mean")) is not None:
            row[CONFIDENCE] = answer_confidence(logprob)
            row[OVERCONFIDENCE] = row[CONFIDENCE] - row["exact_match"]
        yield row
