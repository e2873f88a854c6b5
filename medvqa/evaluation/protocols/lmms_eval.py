"""`lmms_eval`: the VQA-RAD, PathVQA and SLAKE tasks of lmms-eval.

Source: github.com/EvolvingLMMs-Lab/lmms-eval, lmms_eval/tasks/slake/utils.py (commit 65ef07d) for
SLAKE; its VQA-RAD and PathVQA tasks compare by EvalAI's answer processor, which has VQA v2's rules.
An answer is right if either task's rule takes it: `exact_match` is the first, `slake_accuracy` the
second.
"""

import re
import string

from medvqa.data.example import Prediction
from medvqa.evaluation.normalize import vqa_v2
from medvqa.evaluation.protocols.overlap import f1_precision_recall, sentence_bleu
from medvqa.evaluation.protocols.protocol import Protocol, best

PREFIX = re.compile(r"^(answer|the answer is|it is|it's)\s*[:\-]?\s*", re.IGNORECASE)
BRACKETS = re.compile(r"\([^)]*\)|\uff08[^\uff09]*\uff09")
FULL_WIDTH = "".join(map(chr, (*range(0xFF01, 0xFF10), *range(0xFF1A, 0xFF21),
                               *range(0xFF3B, 0xFF41), *range(0xFF5B, 0xFF65))))  # fmt: skip
MARKS = str.maketrans(
    dict.fromkeys(string.punctuation + FULL_WIDTH + "\u3001\u3002\u300a\u300b\u3010\u3011", " ")
)
SAME = {
    "yes": "yes yeah yep true 是 是的 有 包含 可以 能 会 正常",
    "no": "no nope false 否 不是 没有 无 不包含 不能 不会 不可以 不正常 异常",
}  # fmt: skip
ALIASES = {word: name for name, words in SAME.items() for word in words.split()}
ALIASES |= {"x ray": "xray"}


def evalai(text: str) -> str:
    """Return the text as EvalAI's answer processor does."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa_v2(text.replace("\n", " ").replace("\t", " ").strip())


def short(text: str) -> str:
    """Return the first line of an answer without its introduction, normalised (PathVQA)."""
    return evalai(PREFIX.sub("", text.strip().split("\n", 1)[0].strip()).strip())


def slake(text: str) -> str:
    """Return the text as the SLAKE task compares it: no brackets, marks to spaces, aliases."""
    plain = " ".join(BRACKETS.sub(" ", text.strip().lower()).translate(MARKS).split())
    return ALIASES.get(plain, plain)


def rule(prediction: Prediction, is_closed: bool) -> dict[str, float]:
    """Score by the three tasks' exact matches, and PathVQA's overlaps."""
    answer = prediction.prediction

    def values_of(reference: str) -> dict[str, float]:
        words, expected = short(answer).split(), short(reference).split()
        is_yes_no = short(reference) in ("yes", "no")
        return {
            "exact_match": evalai(answer.strip()) == evalai(reference),
            "overall_acc": (_yes_no(answer) if is_yes_no else short(answer)) == short(reference),
            "slake_accuracy": slake(answer) == slake(reference),
            "macro_f1": f1_precision_recall(words, expected)[0],
            **{f"bleu{n}": sentence_bleu(words, expected, [1 / n] * n, smooth=True)
               for n in (1, 2, 3)},
        }  # fmt: skip

    values = best(prediction.references, values_of)
    kind = "closed" if is_closed else "open"
    task = "yesno_acc" if is_closed else "freeform_acc"
    return {
        **values,
        f"slake_{kind}_accuracy": values["slake_accuracy"],
        task: values["overall_acc"],
        f"exact_match ({kind})": values["exact_match"],
    }


def _yes_no(text: str) -> str:
    normalized = short(text)
    match = re.search(r"\b(yes|no)\b", normalized)
    return match[1] if match else normalized


PROTOCOL = Protocol(
    name="lmms_eval",
    source="github.com/EvolvingLMMs-Lab/lmms-eval, lmms_eval/tasks: vqa_rad, pathvqa, slake",
    split="the data set's labels (SLAKE); PathVQA takes yes/no references (`--types yes_no`)",
    rule=rule,
    shown=("slake_closed_accuracy", "slake_open_accuracy", "exact_match"),
    remaining="the task's prompt suffix; one language or both (slake_en, slake_zh, slake)",
)
