"""Runs of an arm -> how sure they are, and how rightly; their hallucination probes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medvqa.data.example import Score
from medvqa.evaluation.comparison import arm_mean
from medvqa.evaluation.confidence_summary import Confidence
from medvqa.evaluation.probed import probe_scores, read_probed
from medvqa.evaluation.probing import probe_place, read_probes
from medvqa.evaluation.score import GROUPS
from medvqa.report.arms import Arm
from medvqa.report.matching import aligned
from medvqa.report.runs import AGREEMENT, CONFIDENCE, Answers

PHASES = ("zero_shot", "final")


@dataclass(frozen=True, kw_only=True)
class ArmConfidence:
    """One arm's confidence in one phase.

    Attributes:
        measures: See `medvqa.evaluation.confidence_summary`; and `agreement` where it was asked.
        curves: Reliability and risk-coverage, of all runs together.
        num_asked: Questions that all runs answered; the measures are of those with a confidence.
    """

    arm: Arm
    set_name: str
    phase: str
    group: str
    measures: dict[str, Score]
    curves: dict[str, Any]
    num_asked: int
    num_seeds: int


def confidences(arms: Sequence[Arm]) -> Iterator[ArmConfidence]:
    """Yield each arm's confidence by set, phase and group; arms without any are left out."""
    for arm in arms:
        names = dict.fromkeys(a.set_name for run in arm.runs for a in run.answers)
        for set_name in names:
            for phase in PHASES:
                answers = [a for run in arm.runs if (a := run.answered(phase, set_name))]
                for group in GROUPS if answers else ():
                    own, num_asked = _confidence(answers, group)
                    if own and (measures := own.measures()):
                        yield ArmConfidence(
                            arm=arm,
                            set_name=set_name,
                            phase=phase,
                            group=group,
                            measures={**measures, **_agreement(answers, group)},
                            curves=own.curves(),
                            num_asked=num_asked,
                            num_seeds=len(answers),
                        )


def _agreement(answers: Sequence[Answers], group: str) -> dict[str, Score]:
    """Return the share of rephrasings that are answered alike, where all runs were asked any."""
    (scores,), questions = aligned([answers], group=group, metric=AGREEMENT)
    clusters = [question.cluster for question in questions]
    if len(set(clusters)) < 2:
        return {}
    return {AGREEMENT: arm_mean(scores, clusters, bounds=(0, 1)).score}


def _confidence(answers: Sequence[Answers], group: str) -> tuple[Confidence | None, int]:
    """Return the runs' confidence in questions where all have one, and how many all answered."""
    (confidence,), questions = aligned([answers], group=group, metric=CONFIDENCE)
    (is_right,), answered = aligned([answers], group=group, metric="exact_match")
    known = set(questions)
    places = [place for place, question in enumerate(answered) if question in known]
    if not places:
        return None, len(answered)
    clusters = [question.cluster for question in questions]
    own = Confidence(confidence=confidence, is_right=is_right[:, places], clusters=clusters)
    return own, len(answered)


@dataclass(frozen=True, kw_only=True)
class ArmProbe:
    """One probe of one arm on one set.

    Attributes:
        num_seeds: Runs that were asked; all of them were.
        reason: Why the probe asked nothing; "" where it did.
        rates: Measure of `MEASURES` -> mean with interval.
    """

    arm: Arm
    set_name: str
    probe: str
    num_seeds: int
    reason: str
    rates: dict[str, Score]


def arm_probes(arms: Sequence[Arm]) -> tuple[list[ArmProbe], list[str]]:
    """Return the probes of all arms, and a note on each that only some of an arm's runs have."""
    probes, notes = [], []
    for arm in arms:
        results = [{(r.set_name, r.probe): r for r in read_probes(run.directory)}
                   for run in arm.runs]  # fmt: skip
        for key in dict.fromkeys(key for own in results for key in own):
            set_name, probe = key
            have = [run for run, own in zip(arm.runs, results, strict=True) if key in own]
            if len(have) < len(arm.runs):
                notes.append(
                    f"{arm.name}: {len(have)} of {len(arm.runs)} runs have the probe {probe} on "
                    f"{set_name}; it is not shown"
                )
                continue
            rows = [read_probed(probe_place(r.directory, probe, set_name)) for r in have]
            probes.append(
                ArmProbe(
                    arm=arm,
                    set_name=set_name,
                    probe=probe,
                    num_seeds=len(have),
                    reason=results[0][key].reason,
                    rates=probe_scores(rows),
                )
            )
    return probes, notes
