"""Run directories -> all that a report shows, and the way in for whoever wants the numbers.

study = read_study([Path("multirun/...")], Settings(within=("training.max_steps",)))
study.comparisons[0].crossed.difference, study.comparisons[0].p_holm
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medvqa.evaluation.comparison import ArmMean, arm_mean
from medvqa.evaluation.phase_scores import phase_place
from medvqa.evaluation.score import GROUPS, SHOWN
from medvqa.report.arms import Arm, read_arms
from medvqa.report.confidence import (
    ArmConfidence,
    ArmProbe,
    arm_probes,
    confidences,
)
from medvqa.report.inputs import check_inputs
from medvqa.report.matching import Settings, aligned, arm_pairs
from medvqa.report.pairs import Comparison, compare_on, overconfidence
from medvqa.report.runs import Run, read_runs
from medvqa.report.verdicts import NOT_LEARNED, Verdict, planned_pairing, verdicts
from medvqa.tracking.progress import track

RESCALABLE, UNBOUNDED = "bertscore_f1", (-math.inf, math.inf)  # rescaled, it can be below 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number of the tables.

    Attributes:
        group: `overall`, `open` or `closed` questions.
        mean: Over the runs of the arm and the questions of the group.
        by_run: The same of each run, in the arm's order of runs.
        runs: Those that have this phase.
    """

    arm: Arm
    set_name: str
    phase: str
    group: str
    metric: str
    mean: ArmMean
    by_run: tuple[float, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that a report shows.

    Attributes:
        notes: What was left out and why, one line each.
        within: Config keys in which only equal arms were compared.
        verdicts: On the claims that the configs state.
        confidence: How sure each arm is, and how rightly.
        overconfidence: Differences of the compared pairs.
        probes: Hallucination probes of each arm.
    """

    runs: tuple[Run, ...]
    arms: tuple[Arm, ...]
    set_names: tuple[str, ...]
    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    within: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    confidence: tuple[ArmConfidence, ...] = ()
    overconfidence: tuple[Comparison, ...] = ()
    probes: tuple[ArmProbe, ...] = ()

    def majority(self) -> dict[tuple[str, str, str], float]:
        """Return (set, group, metric) -> score of the majority answer, the highest of all arms."""
        scores: dict[tuple[str, str, str], float] = {}
        for r in self.results:
            if r.phase == "majority":
                key = (r.set_name, r.group, r.metric)
                scores[key] = max(scores.get(key, 0.0), r.mean.score.mean)
        return scores

    def remarks(self, set_name: str) -> dict[str, str]:
        """Return what a reader must know of an arm before reading its score, by the arm's name."""
        key = (set_name, "overall", "exact_match")
        floor = self.majority().get(key, -1.0)
        below = {
            r.arm.name
            for r in self.results
            if (r.set_name, r.group, r.metric) == key
            and r.phase == "final"
            and r.mean.score.mean < floor
        }
        return {
            arm.name: "; ".join(
                filter(None, (arm.divergence, NOT_LEARNED if arm.name in below else ""))
            )
            for arm in self.arms
        }


def read_study(places: Sequence[Path], settings: Settings | None = None) -> Study:
    """Return the study of run directories, compared as the settings say.

    Raises:
        UserError: If there is no run, or a pair may not be compared and the user did not insist.
    """
    runs = read_runs(places)
    settings = settings or Settings()
    settings = replace(
        settings, seeds_are_paired=settings.seeds_are_paired or planned_pairing(runs)
    )
    arms, notes = read_arms(runs)
    set_names = tuple(
        dict.fromkeys(name for arm in arms for name in arm.config["data"]["evaluation"])
    )
    pairs = arm_pairs(arms, settings)
    comparisons = tuple(c for name in set_names for c in compare_on(name, pairs, arms, settings))
    probes, probe_notes = arm_probes(arms)
    study = Study(
        runs=tuple(runs),
        arms=tuple(arms),
        set_names=set_names,
        results=tuple(
            result
            for arm in track(arms, description="averaging arms")
            for result in arm_results(arm)
        ),
        comparisons=comparisons,
        notes=(*notes, *probe_notes, *check_inputs(runs, arms, places)),
        within=settings.within,
        verdicts=(),
        confidence=tuple(confidences(arms)),
        overconfidence=tuple(overconfidence(comparisons, settings)),
        probes=tuple(probes),
    )
    return replace(study, verdicts=tuple(verdicts(arms, study.comparisons, study.majority())))


def arm_results(arm: Arm) -> Iterator[Result]:
    """Yield a result for each set, phase, group and metric of the arm."""
    keys = dict.fromkeys(
        (answers.set_name, answers.phase) for run in arm.runs for answers in run.answers
    )
    for set_name, phase in keys:
        runs = [run for run in arm.runs if run.answered(phase, set_name)]
        every = [answers for run in runs if (answers := run.answered(phase, set_name))]
        for group in GROUPS:
            for metric in SHOWN:
                scores, questions = aligned([every], group=group, metric=metric)
                clusters = [question.cluster for question in questions]
                if len(set(clusters)) < 2:
                    continue  # one picture shows no spread
                yield Result(
                    arm=arm,
                    set_name=set_name,
                    phase=phase,
                    group=group,
                    metric=metric,
                    mean=arm_mean(
                        scores[0], clusters, bounds=UNBOUNDED if metric == RESCALABLE else (0, 1)
                    ),
                    by_run=tuple(map(float, scores[0].mean(axis=1))),
                    runs=tuple(runs),
                )


def phases_in_order(study: Study) -> list[str]:
    """Return the phases that occur: baselines, stages by their step, then the final one."""
    places: dict[str, tuple[int, int]] = {}
    for run in study.runs:
        for a in run.answers:
            place = phase_place(a.phase, a.step)
            places[a.phase] = max(places.get(a.phase, place), place)
    return sorted(places, key=lambda phase: (places[phase], phase))
