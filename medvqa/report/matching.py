"""Runs of two arms -> the runs and the questions that both share, as arrays of scores."""

from collections.abc import Sequence
from dataclasses import dataclass

from medvqa.config.errors import UserError
from medvqa.evaluation.arrays import Array
from medvqa.report.arms import Arm
from medvqa.report.runs import Answers, Question, Run


@dataclass(frozen=True)
class Matched:
    """What two arms have in common on one set, for one metric.

    Attributes:
        runs: Of a and of b.
        scores: Of a and of b, as (runs, questions).
        questions: Those that every run answers and that the metric applies to.
        left_out: Runs without a partner, where arms are paired by seed.
    """

    runs: tuple[list[Run], list[Run]]
    scores: tuple[Array, Array]
    questions: list[Question]
    left_out: tuple[str, ...]

    @property
    def clusters(self) -> list[str]:
        """The picture of each question."""
        return [question.cluster for question in self.questions]

    @property
    def means(self) -> tuple[list[float], list[float]]:
        """Each question's mean over the runs of a and of b."""
        of_a, of_b = self.scores
        return of_a.mean(axis=0).tolist(), of_b.mean(axis=0).tolist()

    def by_seed(self) -> list[tuple[list[float], list[float]]]:
        """Return the scores of each seed that both arms have."""
        of_a, of_b = (
            {run.seed: row.tolist() for run, row in zip(runs, rows, strict=True)}
            for runs, rows in zip(self.runs, self.scores, strict=True)
        )
        return [(row, of_b[seed]) for seed, row in of_a.items() if seed in of_b]


def matched(a: Arm, b: Arm, place: tuple[str, str, str], *, paired: bool) -> Matched:
    """Return what two arms share at one place: set, group of questions, and metric.

    Raises:
        UserError: If paired arms share no seed.
    """
    set_name, group, metric = place
    runs = compared_runs(a, b, paired=paired)
    answers = [[own for run in one if (own := run.answered("final", set_name))] for one in runs]
    (of_a, of_b), questions = aligned(answers, group=group, metric=metric)
    left_out = tuple(
        f"seed {run.seed} of {arm.name}"
        for arm, own in zip((a, b), runs, strict=True)
        for run in arm.runs
        if run not in own
    )
    return Matched(runs, (of_a, of_b), questions, left_out)


def compared_runs(a: Arm, b: Arm, *, paired: bool) -> tuple[list[Run], list[Run]]:
    """Return the runs to compare: with paired seeds, those whose seed both arms have.

    Raises:
        UserError: If paired arms share no seed.
    """
    if not paired:
        return list(a.runs), list(b.runs)
    shared = {run.seed for run in a.runs} & {run.seed for run in b.runs}
    if not shared:
        raise UserError(
            f"{a.name} and {b.name} share no seed, so they cannot be paired by seed; "
            "leave --paired-seeds out"
        )
    runs_a, runs_b = ([run for run in arm.runs if run.seed in shared] for arm in (a, b))
    return runs_a, runs_b


def run_means(
    runs: Sequence[Run], set_name: str, questions: Sequence[Question], metric: str
) -> list[float]:
    """Return each run's mean; empty where a run was not asked or scored alike."""
    means = []
    for run in runs:
        answers = run.answered("final", set_name)
        if answers is None or any(question.id not in answers.rows for question in questions):
            return []
        means.append(float(_scores(answers, questions, metric).mean()))
    return means if all(mean == mean for mean in means) else []


def aligned(
    arms: Sequence[Sequence[Answers]], *, group: str, metric: str
) -> tuple[list[Array], list[Question]]:
    """Return each arm's scores as (runs, questions), and the questions.

    Questions are those that every run answers and that the metric applies to.
    """
    import numpy as np

    every = [answers for arm in arms for answers in arm]
    shared = [
        question
        for question in every[0].questions
        if group in ("overall", question.answer_type)
        and all(question.id in answers.rows for answers in every)
    ]
    columns = np.array([_scores(answers, shared, metric) for answers in every])
    applies = np.isfinite(columns).all(axis=0)
    parts, start = [], 0
    for arm in arms:
        parts.append(columns[start : start + len(arm)][:, applies])
        start += len(arm)
    return parts, [question for question, is_rated in zip(shared, applies, strict=True) if is_rated]


def _scores(answers: Answers, questions: Sequence[Question], metric: str) -> Array:
    rows = [answers.rows[question.id] for question in questions]
    return answers.scores[metric][rows] if rows else answers.scores[metric][:0]
