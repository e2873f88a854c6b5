"""Word overlaps that several protocols share, from the libraries that they use."""

import warnings
from collections import Counter
from collections.abc import Sequence


def f1_precision_recall(answer: Sequence[str], expected: Sequence[str]) -> tuple[float, ...]:
    """Return F1, precision and recall of tokens, counted with multiplicity (SQuAD)."""
    shared = sum((Counter(answer) & Counter(expected)).values())
    if not shared:
        return 0.0, 0.0, 0.0
    precision, recall = shared / len(answer), shared / len(expected)
    return 2 * precision * recall / (precision + recall), precision, recall


def sentence_bleu(
    answer: Sequence[str],
    expected: Sequence[str],
    weights: Sequence[float],
    *,
    smooth: bool = False,
) -> float:
    """Return NLTK's sentence BLEU; `smooth` is its method 1."""
    from nltk.translate.bleu_score import SmoothingFunction
    from nltk.translate.bleu_score import sentence_bleu as bleu

    if not answer or not expected:
        return 0.0
    smoothing = SmoothingFunction().method1 if smooth else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each answer without a shared n-gram
        return float(bleu([expected], answer, weights=weights, smoothing_function=smoothing))
