"""Planned comparisons -> verdicts on the claim that the grid's config states (`study`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medvqa.evaluation.comparison import LEVEL
from medvqa.evaluation.statistics import holm
from medvqa.report.arms import Arm
from medvqa.report.pairs import Comparison
from medvqa.report.runs import Run

SUPPORTED = "supported"
REFUTED = "refuted"
UNSEEN = "could not have been seen at this size"
NONE = "no verdict"
ENOUGH_SEEDS = 5
NOT_LEARNED = "has not learned the task"
Majority = Mapping[tuple[str, str, str], float]  # (set, group, metric) -> score


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one planned comparison, `a` said to be better than `b`, came to.

    Attributes:
        a: Curriculum of the claim; `b` that of the control.
        comparison: None where the two were not compared.
        gain: Of a over b.
        verdict: One of the four constants.
        reason: One clause.
        p_holm: Of no difference, corrected over the claim's planned comparisons.
        p_refuted: Of a gain of the margin or more, corrected likewise: of the two one-sided
            tests (TOST) the one that can refute the claim.
        family_size: Planned comparisons that were corrected together.
    """

    claim: str
    source: str
    a: str
    b: str
    label: str
    set_name: str
    group: str
    metric: str
    margin: float
    comparison: Comparison | None
    gain: float | None
    verdict: str
    reason: str
    p_holm: float | None = None
    p_refuted: float | None = None
    family_size: int = 0


def planned_pairing(runs: Sequence[Run]) -> bool:
    """Return whether a config planned to pair arms by seed."""
    return any(_study_of(run.values.get("config", {})).get("paired_seeds") for run in runs)


def verdicts(
    arms: Sequence[Arm], comparisons: Sequence[Comparison], majority: Majority
) -> list[Verdict]:
    """Return the verdicts, claim by claim; each config may state one."""
    claims = {}
    for arm in arms:
        for run in (*arm.runs, *arm.diverged):
            study = _study_of(run.config)
            if study.get("comparisons"):
                claims[str(study)] = study
    return [
        verdict
        for study in claims.values()
        for verdict in _of_claim(study, comparisons, arms, majority)
    ]


def final_words(verdicts: Sequence[Verdict]) -> list[str]:
    """Return one line per claim: refuted if one comparison is, supported if all are."""
    lines = []
    for claim, source in dict.fromkeys((v.claim, v.source) for v in verdicts):
        parts = [v.verdict for v in verdicts if (v.claim, v.source) == (claim, source)]
        word = next((w for w in (REFUTED, NONE, UNSEEN) if w in parts), SUPPORTED)
        counts = ", ".join(f"{parts.count(w)} {w}" for w in dict.fromkeys(parts))
        lines.append(f"claim: {claim} ({source}) Verdict: {word} ({counts})")
    return lines


def few_seeds(comparisons: Sequence[Comparison]) -> list[str]:
    """Return one sentence on what fewer than five seeds can and cannot show."""
    comparisons = [c for c in comparisons if not (c.is_with_untrained or c.are_identical)]
    fewest = min((n for c in comparisons for n in c.crossed.num_seeds), default=ENOUGH_SEEDS)
    if fewest >= ENOUGH_SEEDS:
        return []
    if fewest == 1:
        return [
            "With 1 seed per arm, a result speaks of these very models on new questions and shows "
            "nothing about another training."
        ]
    sizes = [c.detectable for c in comparisons if c.detectable]
    least, most = (f"{100 * pick(sizes, default=0.5):.0f}" for pick in (min, max))
    most = most if len(sizes) == len(comparisons) else "more than 50"
    spread = f"{least} points"
    if least != most:
        spread = f"{least} to {most} points, depending on the metric"
    return [
        f"With {fewest} seeds per arm, this study can show differences of about {spread}. "
        "It cannot show that a smaller difference is absent."
    ]


def _study_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("study") or {}


def _of_claim(
    study: Mapping[str, Any],
    comparisons: Sequence[Comparison],
    arms: Sequence[Arm],
    majority: Majority,
) -> list[Verdict]:
    """Return the verdicts of one claim, p-values corrected over those that can be judged."""
    prepared: list[Verdict] = []
    for plan in study["comparisons"]:
        place = (plan["set"], plan["questions"], plan["metric"], {plan["a"], plan["b"]})
        matching: list[Comparison | None] = [
            c
            for c in comparisons
            if (c.set_name, c.group, c.metric, {c.a.ordering, c.b.ordering}) == place
        ]
        for c in matching or [None]:
            prepared.append(_prepared(study, plan, c, _obstacle(plan, c, arms, majority)))
    judged = [v for v in prepared if not v.reason]
    p_values = [v.comparison.crossed.p_value for v in judged if v.comparison]
    refuting = [v.p_refuted for v in judged if v.p_refuted is not None]
    corrected = zip(holm(p_values), holm(refuting), strict=True) if judged else iter(())
    return [
        replace(v, p_refuted=None) if v.reason else _judged(v, *next(corrected), len(judged))
        for v in prepared
    ]


def _prepared(
    study: Mapping[str, Any], plan: Mapping[str, Any], c: Comparison | None, obstacle: str
) -> Verdict:
    """Return the planned comparison before correction; a reason means that it gets no verdict."""
    margin = float(study["margin"])
    label = f"{plan['a']} \N{MINUS SIGN} {plan['b']}"
    gain = below = None
    if c:
        is_reversed = c.a.ordering != plan["a"]
        gain = -c.crossed.difference.mean if is_reversed else c.crossed.difference.mean
        below = 1 - c.crossed.p_below(-margin) if is_reversed else c.crossed.p_below(margin)
        label += f" ({c.a.rest})" if c.a.rest else ""
    return Verdict(
        claim=str(study["claim"]),
        source=str(study["source"]),
        a=plan["a"],
        b=plan["b"],
        label=label,
        set_name=plan["set"],
        group=plan["questions"],
        metric=plan["metric"],
        margin=margin,
        comparison=c,
        gain=gain,
        p_refuted=below,
        verdict=NONE,
        reason=obstacle,
    )


def _obstacle(
    plan: Mapping[str, Any], c: Comparison | None, arms: Sequence[Arm], majority: Majority
) -> str:
    """Return why the comparison gets no verdict; empty where it gets one."""
    planned = [arm for arm in arms if arm.ordering in (plan["a"], plan["b"]) and arm.divergence]
    if c:
        planned = [arm for arm in planned if arm in (c.a, c.b)]
    if planned:
        return "; ".join(f"{arm.ordering}: {arm.divergence}" for arm in planned)
    if c is None:
        return "the two arms were not compared"
    if c.unequal:
        return f"no fair pair: {'; '.join(c.unequal)}"
    if c.are_identical:
        return "both arms have the same scores"
    floor = majority.get((c.set_name, c.group, c.metric), -1.0)
    below = [arm.ordering for arm, mean in zip((c.a, c.b), c.means, strict=True) if mean < floor]
    return " and ".join(f"{name} {NOT_LEARNED}" for name in below)


def _judged(v: Verdict, p_holm: float, p_refuted: float, family_size: int) -> Verdict:
    assert v.gain is not None and v.comparison is not None
    if p_holm < LEVEL:
        word, better = (SUPPORTED, v.a) if v.gain > 0 else (REFUTED, v.b)
        reason = f"{better} is better"
    elif p_refuted < LEVEL:
        word, reason = REFUTED, f"a gain of {100 * v.margin:g} points or more is excluded"
    elif v.comparison.crossed.variance_of == "questions":
        word, reason = UNSEEN, "one seed per arm shows nothing about another training"
    else:
        word, reason = UNSEEN, "neither a gain nor its absence is shown"
    return replace(
        v,
        verdict=word,
        reason=reason,
        p_holm=p_holm,
        p_refuted=p_refuted,
        family_size=family_size,
    )
