"""`llava_med`: LLaVA-Med's evaluation, the most copied of the field.

Source: github.com/microsoft/LLaVA-Med, llava/eval/run_eval.py and eval_metrics/ (commit ad758b6).
A closed answer is right if it contains "yes" or "no" anywhere and contains the reference, so that
"not known" answers "no" rightly. A literal run of run_eval.py leaves wrong ones out of the count;
run_eval_batch.py and the values that were published count them, as here. Its "open accuracy"
needs a list of candidate answers from the training set and is not computed.
"""

from collections import Counter

from medvqa.data.example import Prediction
from medvqa.evaluation.normalize import vqa_v2
from medvqa.evaluation.protocols.overlap import sentence_bleu
from medvqa.evaluation.protocols.protocol import Protocol, PublishedScore, best

QUARTERS = (0.25, 0.25, 0.25, 0.25)
BLEU = {"bleu_score": QUARTERS, "bleu_score_1": (1.0, 0.0, 0.0, 0.0),
        "bleu_score_2": (0.0, 1.0, 0.0, 0.0), "bleu_score_3": (0.0, 0.0, 1.0, 0.0)}  # fmt: skip


def normalize(text: str) -> str:
    """Return the text by the rules of VQA v2."""
    return vqa_v2(text.lower()).replace(",", "")


def rule(prediction: Prediction, is_closed: bool) -> dict[str, float]:
    """Score a closed question by substrings, an open one by its words."""
    answer = normalize(prediction.prediction)
    if is_closed:
        holds_either = "yes" in answer or "no" in answer
        hits = [normalize(reference) in answer for reference in prediction.references]
        return {"yes/no accuracy": float(holds_either and any(hits))}
    return best(prediction.references, lambda reference: _open(answer, normalize(reference)))


def _open(answer: str, reference: str) -> dict[str, float]:
    words, expected = (Counter(normalize(text).split()) for text in (answer, reference))
    num_words = sum(words.values())
    hits = sum(count for word, count in words.items() if word in expected)
    misses = sum(count for word, count in expected.items() if word not in words)
    precision, recall = (hits / num_words, hits / (hits + misses)) if hits else (0.0, 0.0)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    num_distinct = sum(word in words for word in expected)
    return {
        "recall": recall,
        "f1 score": f1,
        "precision": precision,
        "exact match score": num_distinct / num_words if num_words else 0.0,
        **{
            name: sentence_bleu(answer.split(), reference.split(), weights)
            for name, weights in BLEU.items()
        },
    }


PROTOCOL = Protocol(
    name="llava_med",
    source="github.com/microsoft/LLaVA-Med, commit ad758b6, llava/eval/run_eval.py",
    split="the data set's labels; `--types yes_no` takes yes/no references as closed",
    rule=rule,
    shown=("yes/no accuracy", "recall", None),
    published=(
        PublishedScore(
            model="LLaVA-Med, stage 2, zero-shot",
            source="Li et al., 2023, closed / open recall",
            values={
                "VQA-RAD": "61.40 / 28.23",
                "SLAKE": "52.16 / 39.17",
                "PathVQA": "54.05 / 12.30",
            },
        ),
    ),
    remaining="prompt and conversation template; its VQA-RAD and SLAKE files, labels and languages",
)
