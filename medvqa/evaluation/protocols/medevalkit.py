"""`medevalkit`: MedEvalKit's rules, behind Lingshu's tables.

Source: github.com/alibaba-damo-academy/MedEvalKit, utils/utils.py and utils/VQA_RAD/VQA_RAD.py,
read in the copy blackkiring/MedEvalKit (commits f60b5be and 5d94614).
"""

import re

from medvqa.data.example import Prediction
from medvqa.evaluation.protocols.overlap import f1_precision_recall, sentence_bleu
from medvqa.evaluation.protocols.protocol import Protocol, PublishedScore, best

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
# In the order in which its code splits at them; what follows the last one is the answer.
INTRODUCTIONS = ("**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:",
                 "答案:", "final answer", "final answer is")  # fmt: skip
MOST_ROUGE_WORDS = 500


def response_of(text: str) -> str:
    """Return the answer in a model's text: boxed, tagged, or behind "the answer is"."""
    boxed = _boxed(text)
    if boxed is not None:
        text = boxed
    elif ANSWER.search(text):
        text = " ".join(part.strip(" ") for part in ANSWER.findall(text))
    text = text.lower().strip()
    for introduction in INTRODUCTIONS:
        text = text.rpartition(introduction)[2]
    return text


def _boxed(text: str) -> str | None:
    r"""Return what the last \boxed{...} holds, with its braces in pairs."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin + 1 : position]
    return None


def rule(prediction: Prediction, is_closed: bool) -> dict[str, float]:
    """Score a closed question by exactly one of the substrings, an open one by its words."""
    response = response_of(prediction.prediction)
    references = [reference.lower().strip() for reference in prediction.references]
    if not is_closed:
        values = best(references, lambda reference: _open(response, reference))
        return {**values, "total acc": values["em"]}
    flat = response.replace("\n", "").replace(".", "")
    is_right = any(_is_right(flat, reference) for reference in references)
    return {"close acc": float(is_right), "total acc": float(is_right)}


def _is_right(response: str, reference: str) -> bool:
    reference = reference.rstrip(".")
    if reference in ("yes", "no"):
        return (("yes" in response) != ("no" in response)) and reference in response
    return response == reference  # closed answers of SLAKE that are not yes or no


def _open(response: str, reference: str) -> dict[str, float]:
    words = (list(set(text.split())) for text in (response, reference))
    f1, precision, recall = f1_precision_recall(*words)
    tokens, expected_tokens = (text.replace(".", " .").split(" ") for text in (response, reference))
    return {
        "em": response == reference,
        "f1": f1,
        "precision": precision,
        "recall": recall,
        **{f"bleu{n}": sentence_bleu(tokens, expected_tokens, [1 / n] * n) for n in range(1, 5)},
        **_rouge(response, reference),
    }


def _rouge(response: str, reference: str) -> dict[str, float]:
    from rouge import Rouge

    names = {"rouge1": "rouge-1", "rouge2": "rouge-2", "rougel": "rouge-l"}
    texts = [" ".join(text.split()[:MOST_ROUGE_WORDS]) for text in (response, reference)]
    if not all(text.strip(". ") for text in texts):  # the library fails on a text without words
        return dict.fromkeys(names, 0.0)
    scores = Rouge().get_scores(*texts)[0]
    return {ours: scores[theirs]["f"] for ours, theirs in names.items()}


SOURCE = "Lingshu technical report (Xu et al., 2025)"
DATA = ("VQA-RAD", "SLAKE", "PathVQA")
PROTOCOL = Protocol(
    name="medevalkit",
    source="github.com/alibaba-damo-academy/MedEvalKit, utils/utils.py",
    split="a yes/no reference is closed, always; for SLAKE its script uses the labels "
    "(`--types labels`), and other closed answers compare exactly",
    types="yes_no",
    rule=rule,
    shown=("close acc", "em", "total acc"),
    published=tuple(
        PublishedScore(
            model=model, source=SOURCE, values=dict(zip(DATA, values, strict=True)), has_judge=True
        )
        for model, values in (
            ("Qwen2.5-VL-7B", ("64.5", "67.2", "44.1")),
            ("InternVL3-8B", ("65.4", "72.8", "48.6")),
            ("HuatuoGPT-V-7B", ("67.0", "67.8", "48.0")),
            ("Lingshu-7B", ("67.9", "83.1", "61.9")),
        )
    ),
    remaining="the judge (the published totals use one); the prompt depends on the type of the "
    "gold answer; all of SLAKE, Chinese rows included",
)
