"""`seed`: how the mission's published rows were scored.

Source: github.com/MdSufiyan005/MEDICO-AGENT (commit 8ba3d27), Finetuning/Inference notebooks.
"""

import re
import string

from medvqa.data.example import Prediction
from medvqa.evaluation.protocols.overlap import f1_precision_recall
from medvqa.evaluation.protocols.protocol import Protocol, PublishedScore, best

MARKS = re.compile(f"[{re.escape(string.punctuation)}]")
ARTICLES = re.compile(r"\b(a|an|the)\b")
TOLERANCE = 0.01  # absolute; the 2B notebook calls the same function with .05


def normalize(text: str) -> str:
    """Return lower-case text; each mark becomes a space, articles go."""
    return " ".join(ARTICLES.sub(" ", MARKS.sub(" ", text.lower())).split())


def number(text: str) -> float | None:
    """Return what is left of a text without all but digits, points and hyphens, as a number."""
    try:
        return float(re.sub(r"[^\d.-]", "", text))
    except ValueError:
        return None


def rule(prediction: Prediction, is_closed: bool) -> dict[str, float]:
    """Score every question alike."""
    answer = normalize(prediction.prediction)

    def values_of(reference: str) -> dict[str, float]:
        expected = normalize(reference)
        is_equal = answer == expected
        one, other = number(prediction.prediction), number(reference)
        is_close = one is not None and other is not None and abs(one - other) <= TOLERANCE
        both_empty = not answer and not expected
        f1 = 1.0 if both_empty else f1_precision_recall(answer.split(), expected.split())[0]
        return {"EM": is_equal, "F1": f1, "EM (numeric tolerance)": is_equal or is_close}

    return best(prediction.references, values_of)


SOURCE = "MEDICO-AGENT, Finetuning/Inference"
ON = "VQA-RAD, the 451 test rows"
PROTOCOL = Protocol(
    name="seed",
    source="github.com/MdSufiyan005/MEDICO-AGENT, commit 8ba3d27, Finetuning/Inference",
    split="none: every question is scored alike",
    rule=rule,
    shown=(None, "F1", "EM"),
    unit=1,
    digits=6,
    published=tuple(
        PublishedScore(model=model, source=SOURCE, values={ON: f"EM {em}, F1 {f1}"})
        for model, em, f1 in (
            ("Qwen3-VL-8B", ".4590", ".4929"),
            ("Qwen3-VL-2B", ".3503", ".3798"),
            ("Qwen2-VL-7B", ".3769", ".4309"),
            ("Qwen2-VL-2B", ".2084", ".2793"),
        )
    ),
    remaining="prompt (use prompt=published), 4-bit weights, 200 new tokens, decoding as the "
    "model's generation config says; BERTScore with roberta-large is evaluation=published",
)
