"""What must be equal for a difference between two arms to mean the training data or its order."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from medvqa.report.arms import Arm
from medvqa.report.runs import Run
from medvqa.tracking import record
from medvqa.tracking.run_file import ContaminationFile
from medvqa.tracking.shape import checked

BUDGET = ("optimiser steps", "examples per step", "examples trained on")


def unequal(a: Arm, b: Arm, set_name: str) -> tuple[str, ...]:
    """Return why the two may not be compared on this set; empty where they may.

    Contamination counts even where both arms have the same: what a model has seen in training it
    need not have learnt.
    """
    facts = [(run, facts_of(run, set_name)) for run in (*a.runs, *b.runs)]
    reasons = []
    for name in facts[0][1]:
        # A run that only evaluates spends no training budget.
        values = list(
            dict.fromkeys(
                v[name]
                for run, v in facts
                if name not in BUDGET or not run.config.get("only_evaluate")
            )
        )
        if len(values) > 1:
            reasons.append(f"{name}: {' and '.join(values)}")
    polluted = dict.fromkeys(filter(None, (contamination(r, set_name) for r, _ in facts)))
    return (*reasons, *(f"contaminated pool: {reason}" for reason in polluted))


def facts_of(run: Run, set_name: str) -> dict[str, str]:
    """Return budget, test set, scoring and pixels of a run, in the words of a refusal."""
    config, plan = run.config, run.values["plan"]
    training, model = config["training"], config["model"]
    final = run.answered("final", set_name)
    scoring = final.protocol if final else {}
    num_examples = sum(stage["num_examples"] for stage in plan["stages"])
    return {
        "optimiser steps": str(plan["num_steps"]),
        "examples per step": str(training["micro_batch_size"] * training["accumulation_steps"]),
        "examples trained on": str(num_examples),
        "test questions": _test_set(run, set_name),
        "normaliser": str(scoring.get("normalizer")),
        "numeric tolerance": str(scoring.get("numeric_tolerance")),
        "longest answer in tokens": str(scoring.get("max_new_tokens")),
        "BERTScore": _encoder(scoring.get("bertscore")),
        "pixels per image": _pixels(model),
    }


def _pixels(model: Mapping[str, Any]) -> str:
    """Return the pixel budget, or what stands in its place in a family without one."""
    if model.get("max_pixels") is not None:
        return f"{model.get('min_pixels')} to {model['max_pixels']}"
    options = model.get("image_options")
    return json.dumps(options) if options else "the model's own"


def _test_set(run: Run, set_name: str) -> str:
    """Return count and a hash of ids and of what run.json knows of texts, answers and pictures."""
    final = run.answered("final", set_name)
    if final is None:
        return "none"
    described = run.values.get("data", {}).get(set_name, {}).get("sha256", "")
    ids = json.dumps([[q.id, q.references, q.cluster] for q in final.questions])
    digest = hashlib.sha256((ids + described).encode()).hexdigest()
    return f"{len(final.questions)} ({digest[:8]})"


def _encoder(values: Mapping[str, Any] | None) -> str:
    if not values:
        return "off"
    rescaled = ", rescaled" if values["rescale"] else ""
    return f"{values['model']}, layer {values['num_layers']}{rescaled} ({values['package']})"


def contamination(run: Run, set_name: str) -> str | None:
    """Return what the gate found above its bounds and let pass; None where all is well.

    Runs from before the gate have no contamination.json: nothing is known about them.
    """
    path = run.directory / "contamination.json"
    stored = checked(record.read_json(path), ContaminationFile, path)
    overlaps = stored.get("sets", {}).get(set_name, {})
    bounds = run.config.get("contamination", {})
    if bounds.get("action") == "drop":
        return None  # contaminated examples were left out before training
    above = [
        f"{overlaps[f'{kind}_overlap']:.0%} of {set_name}'s {noun} occur in training"
        for kind, noun in (("image", "pictures"), ("item", "questions"))
        if overlaps.get(f"{kind}_overlap", 0.0) > bounds.get(f"max_{kind}_overlap", 0.0)
    ]
    return ", ".join(above) or None
