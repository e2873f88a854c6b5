"""What calibration promises, checked with a trained model's answers to phantoms.

    python benchmarks/confidence.py outputs/RUN --out benchmarks/results/confidence.json
    python benchmarks/confidence.py --again benchmarks/results/confidence.json

The first command answers new phantoms (each seed draws 125 pictures), the split `shifted`, a kind
of picture that training never saw, and `blank` pictures, all grey. The second one only repeats the
statistics. Questions about two pictures are left out. Each simulated calibration draws pictures
with replacement, so the error of all pictures is the truth that its bound speaks of.
"""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvqa.config.data import RowsConfig
from medvqa.data import phantom
from medvqa.data.bad_rows import BadRows
from medvqa.data.example import Example
from medvqa.evaluation.answering import by_model
from medvqa.evaluation.calibration import (
    COVERAGES,
    Calibration,
    ConfidentAnswer,
    calibrate,
    fit_temperature,
    picture_losses,
    scale,
)
from medvqa.evaluation.confidence import calibration_error
from medvqa.evaluation.evaluate import Evaluator
from medvqa.evaluation.probes import blank
from medvqa.models.encode import encoder_of
from medvqa.models.trained import load_trained, read_trained
from medvqa.tracking.environment import provenance
from medvqa.tracking.record import read_json, read_lines, write_json

SEEDS = {"test": range(101, 109), "shifted": range(101, 103), "blank": range(101, 103)}
NUM_CALIBRATIONS = 200
NUM_PICTURES = 320  # of each simulated calibration
DELTA = 0.1
MAX_ERRORS = (0.1, 0.2, 0.3)
SHARPNESS = (0.5, 1.0, 3.0)
Pictures = Sequence[Sequence[tuple[float, int]]]  # confidence and right or wrong of each answer


def main() -> None:
    """Answer, simulate and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--again", type=Path, help="a record whose answers are used")
    options = parser.parse_args()
    out = options.again or options.out
    if options.again:
        record = read_json(options.again)
    else:
        answers = answered(options.run, out.parent)
        record = {**provenance(), "answers": {name: packed(own) for name, own in answers.items()}}
    record["results"] = results({n: unpacked(text) for n, text in record["answers"].items()})
    write_json(out, record)
    for name, value in record["results"].items():
        print(name, value, flush=True)  # noqa: T201


def packed(pictures: Pictures) -> str:
    """Return "0.91r0.42w 0.77r": confidences, each right or wrong, pictures apart."""
    return " ".join("".join(f"{c:g}{'wr'[right]}" for c, right in own) for own in pictures)


def unpacked(text: str) -> list[list[tuple[float, int]]]:
    """Return what `packed` has written."""
    parts = (re.findall(r"([^rw]+)([rw])", picture) for picture in text.split())
    return [[(float(c), int(sign == "r")) for c, sign in picture] for picture in parts]


def answered(run: Path, work: Path) -> dict[str, list[list[tuple[float, int]]]]:
    """Return the run's answers to new phantoms, picture by picture, of each split."""
    trained = read_trained(run)
    loaded = load_trained(trained)
    encoder = encoder_of(loaded, trained.model, None, trained.prompt)
    answers: dict[str, list[list[tuple[float, int]]]] = {}
    for split, seeds in SEEDS.items():
        sets = {f"{split}-{seed}": _questions(split, seed) for seed in seeds}
        place = work / "confidence_answers"
        evaluator = Evaluator(sets, trained.evaluation, directory=place, seed=0)
        answer = by_model(loaded, encoder, trained.evaluation)
        evaluator.phase(split, 0, answer, device=loaded.device.type)
        for name in sets:
            by_picture: dict[str, list[tuple[float, int]]] = {}
            for row in read_lines(evaluator.place(split, name) / "predictions.jsonl"):
                confidence = round(min(1.0, math.exp(row["logprob_mean"])), 4)
                by_picture.setdefault(row["cluster"], []).append(
                    (confidence, int(row["exact_match"]))
                )
            answers.setdefault(split, []).extend(by_picture.values())
    return answers


def _questions(split: str, seed: int) -> list[Example]:
    drawn = "test" if split == "blank" else split
    examples = phantom.load(RowsConfig(name="phantom", split=drawn), seed, BadRows())
    alone = [example for example in examples if len(example.images) == 1]
    if split == "blank":
        return [question.example for question in blank(alone, seed)]
    # Other seeds draw other pictures under the same names, by which they are cached.
    return [
        replace(
            example,
            image_ids=(f"{seed} {example.image_ids[0]}",),
            images=(replace(example.images[0], name=f"{seed} {example.image_ids[0]}"),),  # type: ignore[type-var]
        )
        for example in alone
    ]


def results(
    answers: Mapping[str, Pictures], num_calibrations: int = NUM_CALIBRATIONS
) -> dict[str, Any]:
    """Return the bound's violations, what scaling repairs, and who is answered."""
    import numpy as np

    rng = np.random.default_rng(0)
    every = in_pictures(answers["test"])
    known = calibrate(every, max_error=0.2, delta=DELTA)
    return {
        "num_pictures": {split: len(own) for split, own in answers.items()},
        "num_answers": {split: sum(map(len, own)) for split, own in answers.items()},
        "accuracy": {
            split: round(_accuracy(in_pictures(own)), 4) for split, own in answers.items()
        },
        "bound": [_violations(answers["test"], e, num_calibrations, rng) for e in MAX_ERRORS],
        "temperature": [_repaired(every, sharpness) for sharpness in SHARPNESS],
        "abstention": {split: _given(known, in_pictures(own)) for split, own in answers.items()},
    }


def in_pictures(pictures: Pictures) -> list[ConfidentAnswer]:
    """Return the answers with one cluster per picture."""
    return [
        ConfidentAnswer(cluster=str(number), confidence=confidence, is_right=bool(right))
        for number, answers in enumerate(pictures)
        for confidence, right in answers
    ]


def _accuracy(answers: Sequence[ConfidentAnswer]) -> float:
    return sum(answer.is_right for answer in answers) / len(answers)


def _violations(pictures: Pictures, max_error: float, count: int, rng: Any) -> dict[str, Any]:
    """Return how often the error of all pictures exceeds the bound."""
    population = in_pictures(pictures)
    violations, untested, coverages = 0, 0, []
    for _ in range(count):
        drawn = [pictures[n] for n in rng.integers(len(pictures), size=NUM_PICTURES)]
        result = calibrate(in_pictures(drawn), max_error=max_error, delta=DELTA)
        given = _given(result, population)
        violations += (given["error"] or 0.0) > max_error
        coverages.append(given["answered"])
        threshold = _untested_threshold(in_pictures(drawn), max_error)
        losses = picture_losses([a for a in population if a.confidence >= threshold])
        untested += sum(losses) > max_error * len(losses)
    return {
        "max_error": max_error,
        "delta": DELTA,
        "num_calibrations": count,
        "violations": violations,
        "violations_without_the_test": untested,
        "allowed": count * DELTA + 3 * math.sqrt(count * DELTA * (1 - DELTA)),
        "num_that_answer": sum(coverage > 0 for coverage in coverages),
        "mean_answered": round(sum(coverages) / count, 4),
    }


def _untested_threshold(answers: Sequence[ConfidentAnswer], max_error: float) -> float:
    """Return the lowest of ten thresholds whose observed error is small enough; 2 if none is."""
    ranked = sorted((answer.confidence for answer in answers), reverse=True)
    good = []
    for share in COVERAGES:
        threshold = ranked[math.ceil(share * len(ranked)) - 1]
        losses = picture_losses([a for a in answers if a.confidence >= threshold])
        good += [threshold] * (sum(losses) <= max_error * len(losses))
    return min(good, default=2.0)


def _given(result: Calibration, answers: Sequence[ConfidentAnswer]) -> dict[str, Any]:
    given = [answer for answer in answers if result.answers(answer.confidence)]
    losses = picture_losses(given)
    error = round(sum(losses) / len(losses), 4) if losses else None
    return {"answered": round(len(given) / len(answers), 4), "error": error}


def _repaired(answers: Sequence[ConfidentAnswer], sharpness: float) -> dict[str, Any]:
    """Return the calibration error of log-odds times `sharpness`, before and after scaling."""
    sharpened = [
        ConfidentAnswer(
            cluster=answer.cluster,
            confidence=scale(answer.confidence, 1 / sharpness),
            is_right=answer.is_right,
        )
        for answer in answers
    ]
    result = calibrate(sharpened, max_error=0.2, delta=DELTA)
    right = [answer.is_right for answer in sharpened]
    return {
        "sharpness": sharpness,
        "temperature": round(result.temperature, 3),
        "expected_temperature": round(sharpness * fit_temperature(answers), 3),
        "ece": round(calibration_error([a.confidence for a in sharpened], right), 4),
        "ece_held_out_before": round(result.ece_before, 4),
        "ece_held_out_after": round(result.ece_after, 4),
    }


if __name__ == "__main__":
    main()
