"""Checks of a report's inputs: each failure is one line, printed beside the results."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from medvqa.config.evaluation import Normalizer
from medvqa.evaluation import metrics
from medvqa.report.arms import Arm
from medvqa.report.runs import Answers, Run

TOLERANCE = 1e-6  # of a stored mean
FEWEST_ANSWERS = 10  # below which equal answers of two seeds are no surprise


def check_inputs(runs: Sequence[Run], arms: Sequence[Arm], places: Sequence[Path]) -> list[str]:
    """Return what is wrong with the runs, one line per failure."""
    finished = [run for run in runs if run.is_finished]
    return [
        *(line for run in finished for line in _scores(run)),
        *_unlisted(runs, places),
        *_contamination(finished),
        *_code(finished),
        *(line for arm in arms for line in _arm(arm)),
    ]


def _scores(run: Run) -> Iterator[str]:
    """Yield the phases whose predictions do not give the stored metrics."""
    import numpy as np

    for answers in run.answers:
        place = f"{run.directory}, {answers.phase} on {answers.set_name}"
        for (group, metric), stored in answers.means.items():
            is_in_group = [group in ("overall", q.answer_type) for q in answers.questions]
            mean = float(np.nanmean(answers.scores[metric][is_in_group]))
            if not abs(mean - stored) <= TOLERANCE:
                yield (
                    f"{place}: the predictions give {metric} {mean:.4f} on {group} questions, "
                    f"metrics.json has {stored:.4f}"
                )
        if wrong := _rescored(answers):
            yield f"{place}: {wrong} stored scores are not those of the answers beside them"


def _rescored(answers: Answers) -> int:
    """Return how many stored exact matches the answers' own texts contradict."""
    name = answers.protocol.get("normalizer")
    if name is None or name not in Normalizer.__members__:
        return 0  # another project's rule
    normalizer = Normalizer[name]
    return sum(
        metrics.exact_match(text, question.references, normalizer) != bool(score)
        for text, question, score in zip(
            answers.texts, answers.questions, answers.scores["exact_match"], strict=True
        )
    )


def _unlisted(runs: Sequence[Run], places: Sequence[Path]) -> Iterator[str]:
    """Yield runs that lie in a grid's directory without being a cell of the grid."""
    known = {run.directory.resolve() for run in runs}
    for place in places:
        for sweep in (place, *sorted(p.parent for p in place.glob("*/sweep.json"))):
            if (sweep / "sweep.json").is_file():
                for path in sorted(sweep.glob("*/run.json")):
                    if path.parent.resolve() not in known:
                        yield f"{path.parent} is no cell of its grid (a copy?): not read"


def _contamination(runs: Sequence[Run]) -> Iterator[str]:
    missing = [
        run
        for run in runs
        if not (run.config.get("only_evaluate") or (run.directory / "contamination.json").is_file())
    ]
    if missing:
        yield (
            f"contamination not checked in {len(missing)} of {len(runs)} runs "
            f"(no contamination.json), first {missing[0].directory}"
        )


def _code(runs: Sequence[Run]) -> Iterator[str]:
    """Yield one line where the runs were computed by different code or libraries."""
    codes = Counter(str((run.values.get("code") or {}).get("sha256"))[:8] for run in runs)
    if len(codes) > 1:
        counts = ", ".join(
            f"{number} by {'unknown code' if name == 'None' else name}"
            for name, number in codes.most_common()
        )
        yield f"runs of different code: {counts}"


def _arm(arm: Arm) -> Iterator[str]:
    """Yield divergence, constant answers, and seeds that answer exactly alike."""
    if arm.divergence:
        yield f"{arm.name}: {arm.divergence}; its planned comparisons get no verdict"
    seen: dict[tuple[str, tuple[str, ...]], Run] = {}
    constant: dict[tuple[str, str], int] = {}
    for run in arm.runs:
        for answers in run.answers:
            if answers.phase != "final":
                continue
            if len(set(answers.texts)) == 1 and len(answers.texts) > 1:
                key = (answers.set_name, answers.texts[0])
                constant[key] = constant.get(key, 0) + 1
                continue
            first = seen.setdefault((answers.set_name, answers.texts), run)
            if first is not run and len(answers.texts) >= FEWEST_ANSWERS:
                yield (
                    f"{run.directory} (seed {run.seed}) gives on {answers.set_name} exactly the "
                    f"answers of {first.directory} (seed {first.seed}): a copy?"
                )
    for (set_name, text), number in constant.items():
        yield (
            f"{arm.name}: {number} of {len(arm.runs)} runs answer {text!r} to every question "
            f"of {set_name}"
        )
