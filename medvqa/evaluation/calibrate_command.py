"""`medvqa calibrate RUN --on SET`: from which confidence on the model answers."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medvqa.config.command_line import CommandParser
from medvqa.config.errors import UserError
from medvqa.evaluation.calibration import (
    Calibration,
    ConfidentAnswer,
    calibrate,
    picture_losses,
)
from medvqa.evaluation.confidence import answer_confidence, calibration_error
from medvqa.evaluation.phase_scores import read_answers as read_stored
from medvqa.models.trained import CALIBRATION_FILE, Kind, read_trained
from medvqa.tracking.record import write_json


def read_answers(
    run: Path, name: str, contamination: Mapping[str, Any] | None, *, phase: str = "final"
) -> list[ConfidentAnswer]:
    """Return the answers to a set in a phase, with confidence and correctness.

    Raises:
        UserError: If the set was trained on or not answered, or the answers have no confidence.
    """
    place = run / "evaluation" / phase
    path = place / name / "predictions.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(p.parent.name for p in place.glob("*/predictions.jsonl")))
        raise UserError(
            f"--on {name}: the run has no answers to this set; it has {known or 'none'}"
        )
    overlap = (contamination or {}).get("sets", {}).get(name)
    if overlap is None:
        raise UserError(f"--on {name}: the run does not record whether this set was trained on")
    if overlap["image_overlap"] > 0:
        raise UserError(
            f"--on {name}: {overlap['image_overlap']:.1%} of its pictures were trained on, so its "
            "answers are too good to calibrate on; take a set without common pictures "
            "(train with contamination=drop)"
        )
    rows = read_stored(path, "id", "cluster", "exact_match")
    if any(row.get("logprob_mean") is None for row in rows):
        raise UserError(f"{path} has no log-probabilities; answer the set again (fresh=true)")
    return [
        ConfidentAnswer(
            cluster=row["cluster"] or row["id"],
            confidence=answer_confidence(row["logprob_mean"]),
            is_right=row["exact_match"] == 1,
        )
        for row in rows
    ]


def _parser() -> CommandParser:
    parser = CommandParser(
        main_calibrate,
        {
            "medvqa calibrate outputs/RUN --on validation": "error of answers at most 20 %",
            "medvqa calibrate outputs/RUN --on validation --max-error 0.1": "at most 10 %",
        },
    )
    add = parser.group("answers")
    add("run", type=Path, help="a finished run")
    add("--on", required=True, metavar="SET", help="an evaluation set that was not trained on")
    add("--report", metavar="SET", help="also show what the threshold does on this set")
    add("--seed", type=int, default=0, metavar="N", help="of the split into halves (default 0)")
    add = parser.group("guarantee")
    add("--max-error", type=float, default=0.2, metavar="SHARE",
        help="largest error rate among answered questions (default 0.2)")  # fmt: skip
    add("--delta", type=float, default=0.1, metavar="SHARE",
        help="chance that the bound fails (default 0.1)")  # fmt: skip
    return parser


def main_calibrate(argv: Sequence[str]) -> None:
    """Fit a temperature and an abstention threshold with a bound on the error rate."""
    options = _parser().parse_args(argv)
    trained = read_trained(options.run)
    if trained.kind is not Kind.run:
        raise UserError(f"{options.run} is an export; calibrate the run, then export it again")
    answers = read_answers(trained.directory, options.on, trained.values.get("contamination"))
    result = calibrate(answers, max_error=options.max_error, delta=options.delta, seed=options.seed)
    lines = [summary(result)]
    if options.report:
        others = read_answers(
            trained.directory, options.report, trained.values.get("contamination")
        )
        lines.append(report(result, options.report, answers, others))
    values = {"set": options.on, "seed": options.seed, **asdict(result)}
    write_json(trained.directory / CALIBRATION_FILE, values)
    sys.stdout.write("\n".join(lines) + "\n")


def report(
    result: Calibration,
    name: str,
    calibrated: Sequence[ConfidentAnswer],
    answers: Sequence[ConfidentAnswer],
) -> str:
    """Return in words what the threshold does on another set.

    Raises:
        UserError: If the set shares a picture with the one that was calibrated on.
    """
    used, own = (
        {picture for answer in rows for picture in answer.cluster.split("+")}
        for rows in (calibrated, answers)
    )
    if shared := used & own:
        raise UserError(
            f"--report {name}: {len(shared)} of its {len(own)} pictures were calibrated on; report "
            "on a set without common pictures"
        )
    given = [answer for answer in answers if result.answers(answer.confidence)]
    losses = picture_losses(given)
    error = f"error {sum(losses) / len(losses):.1%}" if losses else "no error to observe"
    scaled = [result.scaled(answer.confidence) for answer in answers]
    ece = calibration_error(scaled, [answer.is_right for answer in answers])
    return (
        f"{name}: {len(given) / len(answers):.1%} of {len(answers)} questions answered, {error}; "
        f"calibration error {ece:.3f}"
    )


def recalibrated(
    run: Path, calibration: Mapping[str, Any] | None, contamination: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return the calibration of a merged model by its own answers to the same set.

    Args:
        run: Directory with the merged model's evaluation, phase `merged`.
        calibration: That of the adapter; None if it has none.
        contamination: Of the run.
    """
    if calibration is None:
        return None
    answers = read_answers(run, calibration["set"], contamination, phase="merged")
    bounds = {name: float(calibration[name]) for name in ("max_error", "delta")}
    seed = int(calibration.get("seed", 0))
    return {
        "set": calibration["set"],
        "seed": seed,
        **asdict(calibrate(answers, **bounds, seed=seed)),
    }


def summary(result: Calibration) -> str:
    """Return the result in words."""
    scaling = (
        f"temperature {result.temperature:.3g}: calibration error {result.ece_before:.3f} -> "
        f"{result.ece_after:.3f} on {result.num_tested} held-out pictures"
    )
    if result.num_left_out:
        scaling += f"; {result.num_left_out} answers about pictures of both halves are left out"
    bound = f"error rate <= {result.max_error:g} (confidence {1 - result.delta:g})"
    if result.threshold is None:
        return f"{scaling}\nno threshold is certified for {bound}: the model always abstains"
    return (
        f"{scaling}\nthreshold {result.threshold:.3f} certified for {bound}: "
        f"{result.coverage:.1%} answered, observed error {result.error:.1%}"
    )
