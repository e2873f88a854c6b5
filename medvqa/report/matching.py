"""Which arms, runs and questions are compared, and their scores as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from medvqa.config.errors import UserError
from medvqa.evaluation.arrays import Array
from medvqa.report.arms import MODEL_KEYS, Arm, model_label, subtree
from medvqa.report.runs import Answers, Question, Run


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to compare.

    Attributes:
        within: Compare only arms that agree in these config keys.
        baseline: Compare every arm with this one only; all pairs if None.
        allow_unequal: Mark unfair pairs instead of refusing them.
        seeds_are_paired: See `compare_arms`.
        num_samples: Sign flips of the permutation test.
    """

    within: tuple[str, ...] = ()
    baseline: str | None = None
    allow_unequal: bool = False
    seeds_are_paired: bool = False
    num_samples: int = 2000


def arm_pairs(arms: Sequence[Arm], settings: Settings) -> list[tuple[Arm, Arm]]:
    """Return the pairs of one model, and of one value of each `within` key.

    Raises:
        UserError: If the baseline is no arm.
    """
    names, baseline = [arm.name for arm in arms], settings.baseline
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline {baseline!r} is no arm; the arms are: {'; '.join(names)}")
    return [
        (b, a) if a.name == baseline else (a, b)
        for a, b in combinations([arm for arm in arms if arm.runs], 2)
        if block_of(a, settings) == block_of(b, settings)
        and (baseline is None or baseline in (a.name, b.name))
    ]


def block_of(arm: Arm, settings: Settings) -> tuple[str, ...]:
    """Return what must be equal in two arms that are compared or pooled."""
    keys = (*MODEL_KEYS, *settings.within)
    return model_label(arm.config), *(subtree(arm.config, key) for key in keys)


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


def left_out(arm: Arm, compared: Sequence[Run]) -> tuple[str, ...]:
    """Return the runs without a partner, where arms are paired by seed."""
    return tuple(f"seed {r.seed} of {arm.name}" for r in arm.runs if r not in compared)


def pool_of(
    a: Arm, b: Arm, seeds: Sequence[int], arms: Sequence[Arm], settings: Settings
) -> list[list[Run]]:
    """Return the runs of the other arms that tell how much seeds vary.

    They agree with the pair in model and `within` keys, and asked the same questions as it.
    """
    pool = []
    for arm in arms:
        if arm in (a, b) or block_of(arm, settings) != block_of(a, settings):
            continue
        by_seed = {run.seed: run for run in arm.runs}
        if not settings.seeds_are_paired:
            pool.append(list(arm.runs))
        elif all(seed in by_seed for seed in seeds):
            pool.append([by_seed[seed] for seed in seeds])
    return pool


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
    ends = np.cumsum([len(arm) for arm in arms])
    parts = np.split(columns[:, applies], ends[:-1])
    return parts, [question for question, is_rated in zip(shared, applies, strict=True) if is_rated]


def _scores(answers: Answers, questions: Sequence[Question], metric: str) -> Array:
    rows = [answers.rows[question.id] for question in questions]
    return answers.scores[metric][rows] if rows else answers.scores[metric][:0]
