"""What calibration promises, checked with a trained model's answers to phantoms.

    python -m benchmarks.confidence outputs/RUN --out benchmarks/results/confidence.json
    python -m benchmarks.confidence --again benchmarks/results/confidence.json

The first command answers new phantoms; each seed draws 125 pictures. It also answers the split
`shifted`, a kind of picture that training never saw, and `blank` pictures, all grey. The second
command only repeats the statistics. Questions about two pictures are left out. Each simulated
calibration draws pictures with replacement, so its bound is about the error over all pictures.
"""

import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.runs import Row, parser_of, provenance
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
from medvqa.tracking.record import read_json, read_lines, write_json

SEEDS = {"test": range(101, 109), "shifted": range(101, 103), "blank": range(101, 103)}
NUM_CALIBRATIONS = 200
NUM_PICTURES = 320  # of each simulated calibration
DELTA = 0.1
MAX_ERRORS = (0.1, 0.2, 0.3)
SHARPNESS = (0.5, 1.0, 3.0)
Pictures = Sequence[Sequence[tuple[float, bool]]]  # confidence and right or wrong of each answer


def main() -> None:
    """Answer, simulate and write the record."""
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--again", type=Path, help="a record whose answers are used")
    options = parser.parse_args()
    out = options.again or options.out
    record = read_json(out) if options.again else {**provenance(), "answers": answered(options.run)}
    record["results"] = results({n: unpacked(text) for n, text in record["answers"].items()})
    write_json(out, record)
    for name, value in record["results"].items():
        print(name, value, flush=True)  # noqa: T201


def answered(run: Path) -> dict[str, str]:
    """Return the run's answers to new phantoms by split: "0.91r0.42w 0.77r".

    A confidence is right or wrong, and a blank stands between two pictures.
    """
    trained = read_trained(run)
    loaded = load_trained(trained)
    encoder = encoder_of(loaded, trained.model, None, trained.prompt)
    texts: dict[str, list[str]] = {}
    for split, seeds in SEEDS.items():
        sets = {f"{split}-{seed}": questions_of(split, seed) for seed in seeds}
        with tempfile.TemporaryDirectory() as place:
            evaluator = Evaluator(sets, trained.evaluation, directory=Path(place), seed=0)
            answer = by_model(loaded, encoder, trained.evaluation)
            evaluator.phase(split, 0, answer, device=loaded.device.type)
            for name in sets:
                by_picture: dict[str, str] = defaultdict(str)
                for row in read_lines(evaluator.place(split, name) / "predictions.jsonl"):
                    confidence = round(min(1.0, math.exp(row["logprob_mean"])), 4)
                    by_picture[row["cluster"]] += f"{confidence:g}{'wr'[int(row['exact_match'])]}"
                texts.setdefault(split, []).extend(by_picture.values())
    return {split: " ".join(pictures) for split, pictures in texts.items()}


def questions_of(split: str, seed: int) -> list[Example]:
    """Return the questions about one picture."""
    drawn = "test" if split == "blank" else split
    examples = phantom.load(RowsConfig(name="phantom", split=drawn), seed, BadRows())
    alone = [example for example in examples if len(example.images) == 1]
    if split == "blank":
        return [question.example for question in blank(alone, seed)]
    # Other seeds draw other pictures under the same names, by which they are cached.
    named = []
    for example in alone:
        name = f"{seed} {example.image_ids[0]}"
        image = replace(example.images[0], name=name)  # type: ignore[type-var]
        named.append(replace(example, image_ids=(name,), images=(image,)))
    return named


def unpacked(text: str) -> Pictures:
    """Return the answers that `answered` has written, picture by picture."""
    parts = (re.findall(r"([^rw]+)([rw])", picture) for picture in text.split())
    return [[(float(c), sign == "r") for c, sign in picture] for picture in parts]


def in_pictures(pictures: Pictures) -> list[ConfidentAnswer]:
    """Return the answers with one cluster per picture, also where one was drawn twice."""
    return [
        ConfidentAnswer(cluster=str(number), confidence=confidence, is_right=is_right)
        for number, answers in enumerate(pictures)
        for confidence, is_right in answers
    ]


def results(answers: Mapping[str, Pictures], num_calibrations: int = NUM_CALIBRATIONS) -> Row:
    """Return the bound's violations, what scaling repairs, and who is answered."""
    import numpy as np

    rng = np.random.default_rng(0)
    splits = {split: in_pictures(pictures) for split, pictures in answers.items()}
    known = calibrate(splits["test"], max_error=0.2, delta=DELTA)
    return {
        "num_pictures": {split: len(pictures) for split, pictures in answers.items()},
        "num_answers": {split: len(own) for split, own in splits.items()},
        "accuracy": {
            split: round(fmean(answer.is_right for answer in own), 4)
            for split, own in splits.items()
        },
        "bound": [violations(answers["test"], e, num_calibrations, rng) for e in MAX_ERRORS],
        "temperature": [repaired(splits["test"], sharpness) for sharpness in SHARPNESS],
        "abstention": {split: given(known, own) for split, own in splits.items()},
    }


def violations(pictures: Pictures, max_error: float, count: int, rng: Any) -> Row:
    """Return how often the error of all pictures exceeds the bound."""
    population = in_pictures(pictures)
    num_violations, num_untested, coverages = 0, 0, []
    for _ in range(count):
        drawn = in_pictures([pictures[n] for n in rng.integers(len(pictures), size=NUM_PICTURES)])
        answered = given(calibrate(drawn, max_error=max_error, delta=DELTA), population)
        num_violations += (answered["error"] or 0.0) > max_error
        coverages.append(answered["answered"])
        threshold = untested_threshold(drawn, max_error)
        num_untested += error_above(threshold, population) > max_error
    return {
        "max_error": max_error,
        "delta": DELTA,
        "num_calibrations": count,
        "violations": num_violations,
        "violations_without_the_test": num_untested,
        "allowed": count * DELTA + 3 * math.sqrt(count * DELTA * (1 - DELTA)),
        "num_that_answer": sum(coverage > 0 for coverage in coverages),
        "mean_answered": round(fmean(coverages), 4),
    }


def error_above(threshold: float, answers: Sequence[ConfidentAnswer]) -> float:
    """Return the error rate over pictures of the answers that are sure enough; 0 without any."""
    losses = picture_losses([answer for answer in answers if answer.confidence >= threshold])
    return fmean(losses) if losses else 0.0


def untested_threshold(answers: Sequence[ConfidentAnswer], max_error: float) -> float:
    """Return the lowest of ten thresholds whose observed error is small enough; 2 if none is."""
    ranked = sorted((answer.confidence for answer in answers), reverse=True)
    thresholds = [ranked[math.ceil(share * len(ranked)) - 1] for share in COVERAGES]
    return min((t for t in thresholds if error_above(t, answers) <= max_error), default=2.0)


def given(result: Calibration, answers: Sequence[ConfidentAnswer]) -> Row:
    """Return the share of questions that are answered, and the error of these answers."""
    own = [answer for answer in answers if result.answers(answer.confidence)]
    error = round(fmean(picture_losses(own)), 4) if own else None
    return {"answered": round(len(own) / len(answers), 4), "error": error}


def repaired(answers: Sequence[ConfidentAnswer], sharpness: float) -> Row:
    """Return the calibration error of log-odds times `sharpness`, before and after scaling."""
    sharpened = [replace(a, confidence=scale(a.confidence, 1 / sharpness)) for a in answers]
    result = calibrate(sharpened, max_error=0.2, delta=DELTA)
    confidences, are_right = [a.confidence for a in sharpened], [a.is_right for a in sharpened]
    return {
        "sharpness": sharpness,
        "temperature": round(result.temperature, 3),
        "expected_temperature": round(sharpness * fit_temperature(answers), 3),
        "ece": round(calibration_error(confidences, are_right), 4),
        "ece_held_out_before": round(result.ece_before, 4),
        "ece_held_out_after": round(result.ece_after, 4),
    }


if __name__ == "__main__":
    main()
