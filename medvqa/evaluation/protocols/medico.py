"""`medico`: Kvasir-VQA-x1 and MediaEval Medico 2025, whose answers are sentences.

Source: github.com/simula/MediaEval-Medico-2025: the `bleu`, `rouge` and `meteor` of Hugging Face's
evaluate, over all answers, and by the data set's complexity 1 to 3.
"""

from collections.abc import Sequence

from medvqa.data.example import Prediction
from medvqa.evaluation.protocols.protocol import Protocol, PublishedScore, best

ROUGE = ("rouge1", "rouge2", "rougeL")
ORDER = 4  # n-grams of BLEU


def rule(prediction: Prediction, is_closed: bool) -> dict[str, float]:
    """Score every question alike: exact match in lower case, ROUGE, METEOR."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE, use_stemmer=False)
    answer = prediction.prediction

    def values_of(reference: str) -> dict[str, float]:
        rouge = {n: s.fmeasure for n, s in scorer.score(reference, answer).items()}
        return {"exact match": answer.lower().strip() == reference.lower().strip(), **rouge}

    values = best(prediction.references, values_of)
    if not unavailable():
        values["METEOR"] = _meteor(prediction)
    if prediction.level:
        values |= {f"{name} (complexity {prediction.level})": values[name]
                   for name in ("exact match", "rougeL")}  # fmt: skip
    return values


def _meteor(prediction: Prediction) -> float:
    from nltk.tokenize import word_tokenize
    from nltk.translate.meteor_score import meteor_score

    references = [word_tokenize(reference) for reference in prediction.references]
    return float(meteor_score(references, word_tokenize(prediction.prediction)))


def unavailable() -> str:
    """Return why METEOR cannot be computed, or nothing: its word lists are on no package index."""
    import nltk

    try:
        nltk.data.find("corpora/wordnet.zip")
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return "METEOR: NLTK's wordnet and punkt_tab are not installed (nltk.download)"
    return ""


def bleu_statistics(prediction: Prediction) -> Sequence[float]:
    """Return matches and totals by n-gram order, then the lengths of answer and reference."""
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize="13a", smooth_method="none", effective_order=True)
    score = bleu.sentence_score(prediction.prediction, list(prediction.references))
    return (*score.counts, *score.totals, score.sys_len, score.ref_len)


def bleu_value(sums: Sequence[float]) -> float:
    """Return corpus BLEU, in [0, 1], of summed statistics."""
    from sacrebleu.metrics.bleu import BLEU

    counts = [int(value) for value in sums]
    score = BLEU.compute_bleu(
        correct=counts[:ORDER],
        total=counts[ORDER : 2 * ORDER],
        sys_len=counts[-2],
        ref_len=counts[-1],
        smooth_method="none",
    )
    return float(score.score) / 100


PROTOCOL = Protocol(
    name="medico",
    source="github.com/simula/MediaEval-Medico-2025; sacrebleu, rouge-score, NLTK",
    split="none; by complexity where the file states it",
    rule=rule,
    shown=(None, "rougeL", "exact match"),
    unit=1,
    digits=4,
    corpus={"BLEU": (bleu_statistics, bleu_value)},
    published=tuple(
        PublishedScore(
            model=model,
            source="MediaEval Medico 2025, task 1, BLEU / ROUGE-L / METEOR",
            values={"Kvasir-VQA-x1": values},
        )
        for model, values in (
            ("PaliGemma-3B (MM-SSNCE, Team Nepal)", ".47 / .67 / .67"),
            ("Florence-2 (CVG-IBA)", ".45 / .65 / .65"),
        )
    ),
    remaining="the challenge's private test rows",
    unavailable=unavailable,
)
