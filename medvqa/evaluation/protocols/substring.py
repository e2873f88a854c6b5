"""`substring`: the rule of common forks, in which an answer is right if it contains the reference.

Source: forks of lmms-eval and LLaVA-Med with a task for yes/no and one for open questions, such as
LLaVA-Med's own run_eval_batch.py (commit ad758b6).
"""

from medvqa.data.example import Prediction
from medvqa.evaluation.protocols.overlap import f1_precision_recall, sentence_bleu
from medvqa.evaluation.protocols.protocol import Protocol, best


def rule(prediction: Prediction, is_closed: bool) -> dict[str, float]:
    """Score by substring; open questions by word overlap too."""
    answer = prediction.prediction.lower().strip()

    def values_of(reference: str) -> dict[str, float]:
        expected = reference.lower().strip()
        values: dict[str, float] = {"accuracy": expected in answer}
        if is_closed:
            return {**values, "closed accuracy": expected in answer}
        f1, _, recall = f1_precision_recall(answer.split(), expected.split())
        bleu = sentence_bleu(answer.split(), expected.split(), (1.0,))
        return {**values, "open accuracy": expected in answer, "f1": f1, "recall": recall,
                "bleu1": bleu}  # fmt: skip

    return best(prediction.references, values_of)


PROTOCOL = Protocol(
    name="substring",
    source="forks of lmms-eval and LLaVA-Med (run_eval_batch.py)",
    split="two tasks: yes/no references, and all others",
    types="yes_no",
    rule=rule,
    shown=("closed accuracy", "open accuracy", "accuracy"),
    remaining='"no" is a substring of "nodule" and "abnormal": wordy answers gain; forks differ',
)
