"""`medvqa`: this project's own scores; see docs/metrics.md."""

from medvqa.config.evaluation import EvaluationConfig
from medvqa.data.example import Prediction
from medvqa.evaluation.metrics import closed_answer, exact_match, token_f1, token_recall
from medvqa.evaluation.protocols.protocol import Protocol

NORMALIZER = EvaluationConfig().normalizer


def rule(prediction: Prediction, is_closed: bool) -> dict[str, float]:
    """Score by exact match and overlap; closed questions by exactly one of the words yes and no."""
    texts = (prediction.prediction, prediction.references, NORMALIZER)
    values = {"EM": exact_match(*texts), "F1": token_f1(*texts), "recall": token_recall(*texts)}
    if not is_closed:
        return {**values, "open EM": values["EM"], "open F1": values["F1"]}
    closed = closed_answer(*texts)
    return {**values, "closed acc.": float(bool(closed)), "unparsable": float(closed is None)}


PROTOCOL = Protocol(
    name="medvqa",
    source="docs/metrics.md",
    split="the authors' types where a file states them, else a yes/no reference is closed",
    rule=rule,
    shown=("closed acc.", "open F1", "EM"),
    remaining="none of the published rows uses it",
)
