"""Questions -> hallucination probes: what a model that invents findings answers wrongly.

After HALT-MedVQA (Wu et al., arXiv 2401.05827), on any data set; docs/confidence.md defines each.
"""

import hashlib
import io
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from medvqa.config.evaluation import Normalizer, ProbeName
from medvqa.data.example import AnswerType, Example, ImageSource
from medvqa.data.image import image_size
from medvqa.evaluation.choice import correct_option
from medvqa.evaluation.metrics import is_yes_or_no
from medvqa.evaluation.normalize import normalize

GREY = 128
NONE_OF_THE_ABOVE = "None of the above"
UNKNOWN = "I do not know"
MAX_WRONG_OPTIONS = 3
# Invented words, so that a picture cannot show what they name.
FAKE_FINDINGS = (
    *("Quellorin sign", "Braxtholm nodule", "Veltrane plaque", "Ostrevic line"),
    *("Drumholt cyst", "Sarquine shadow"),
)
EXISTS = re.compile(r"(is|are|was|were) there (.+?)\s*\?+", re.IGNORECASE)
IT_IS = re.compile(
    r"(is|was) (this|that|it) ((?:an?|the|from|in|taken|done|normal|abnormal)\b.*?)\s*\?+",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class ProbeQuestion:
    """One question of a probe.

    Attributes:
        example: The question; its answers are those of a model that invents nothing.
        original_id: Id of the question that it was made from; "" if it replaces none.
        cluster: Picture(s) of that question: the unit of the intervals.
        falsehood: What is false in the question: `yes` or `no` that it suggests, a finding asked
            for in `closed` or `open` form, `option` where no other option is right; "" if nothing.
    """

    example: Example
    original_id: str
    cluster: str
    falsehood: str = ""


@dataclass(frozen=True)
class BlankImage:
    """A grey picture of the size of another one."""

    source: ImageSource

    @property
    def name(self) -> str:
        """Name of the picture that it replaces, marked as blank."""
        return f"blank:{self.source.name}"

    def read(self) -> bytes:
        """Return the grey picture as PNG."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.new("L", image_size(self.source), GREY).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def blank(examples: Sequence[Example], seed: int) -> list[ProbeQuestion]:
    """Return each question with grey pictures of the same size."""
    return [
        _question(
            example,
            "blank",
            images=tuple(map(BlankImage, example.images)),
            image_ids=tuple(f"blank:{name}" for name in example.image_ids),
        )
        for example in examples
        if example.images
    ]


def other_patient(examples: Sequence[Example], seed: int) -> list[ProbeQuestion]:
    """Return each question with pictures of the set that it does not show.

    All questions on one picture get the same other picture, which follows from the seed.
    """
    pictures = {
        name: image
        for example in examples
        for name, image in zip(example.image_ids, example.images, strict=True)
    }
    names = sorted(pictures)
    questions = []
    for example in examples:
        own = set(example.image_ids)
        if not own or len(names) < len(own) + len(example.image_ids):
            continue
        order = _random(seed, *example.image_ids).sample(names, len(own) + len(example.image_ids))
        others = [name for name in order if name not in own][: len(example.image_ids)]
        images = tuple(pictures[name] for name in others)
        questions.append(
            _question(example, "other_patient", images=images, image_ids=tuple(others))
        )
    return questions


def leading(examples: Sequence[Example], seed: int) -> list[ProbeQuestion]:
    """Return each yes/no question as two statements that ask for assent, one of them false."""
    return [
        _question(
            example,
            f"leading_{lead}",
            falsehood="" if _plain(example.answers[0]) == lead else lead,
            question=leading_text(example.question, lead),
        )
        for example in examples
        if _is_yes_or_no(example)
        for lead in ("yes", "no")
    ]


def leading_text(question: str, lead: str) -> str:
    """Return the yes/no question so that it suggests the answer.

    "Is there a mass?" becomes "There is a mass, isn't there?" or "There isn't a mass, is there?".
    A question of another form is followed by "The answer is yes, isn't it?".
    """
    text = " ".join(question.split())
    if match := EXISTS.fullmatch(text):
        verb, rest = match[1].lower(), match[2]
        if lead == "yes":
            return f"There {verb} {re.sub(r'^any ', '', rest)}, {verb}n't there?"
        return f"There {verb}n't {rest}, {verb} there?"
    if match := IT_IS.fullmatch(text):
        verb, subject, rest = match[1].lower(), match[2].capitalize(), match[3]
        if lead == "yes":
            return f"{subject} {verb} {rest}, {verb}n't it?"
        return f"{subject} {verb}n't {rest}, {verb} it?"
    return f"{text} The answer is {lead}, isn't it?"


def fake(examples: Sequence[Example], seed: int) -> list[ProbeQuestion]:
    """Return two questions per picture on a finding that does not exist."""
    first = {example.image_ids: example for example in reversed(examples) if example.images}
    questions = []
    for example in reversed(first.values()):
        finding = _random(seed, *example.image_ids).choice(FAKE_FINDINGS)
        forms: tuple[tuple[AnswerType, str, str], ...] = (
            ("closed", f"Is there a {finding} in this picture?", "no"),
            ("open", f"Where is the {finding}?", UNKNOWN),
        )
        for answer_type, text, answer in forms:
            probe = _question(example, f"fake_{answer_type}", falsehood=answer_type, question=text,
                             answers=(answer,), answer_type=answer_type, options=())  # fmt: skip
            questions.append(replace(probe, original_id=""))
    return questions


def none_of_the_above(examples: Sequence[Example], seed: int) -> list[ProbeQuestion]:
    """Return multiple-choice questions whose right option is replaced by "None of the above".

    A question without options gets wrong ones: answers to the same question about other pictures.
    """
    answers: dict[str, dict[str, None]] = {}
    for example in examples:
        if not example.options:
            answers.setdefault(_plain(example.question), {})[_plain(example.answers[0])] = None
    questions = []
    for example in examples:
        wrong = _wrong_options(example, answers, seed)
        if len(wrong) > 1 or (wrong and example.options):
            options = (*wrong, NONE_OF_THE_ABOVE)
            questions.append(_question(example, "none_of_the_above", falsehood="option",
                                       options=options, answers=(options[-1],)))  # fmt: skip
    return questions


def _wrong_options(
    example: Example, answers: dict[str, dict[str, None]], seed: int
) -> tuple[str, ...]:
    if example.options:
        if _plain(NONE_OF_THE_ABOVE) in map(_plain, example.options):
            return ()
        right = correct_option(example.answers, example.options)
        return tuple(o for place, o in enumerate(example.options) if place != right)
    if is_yes_or_no(example.answers[0]):
        return ()
    own = [set(_plain(answer).split()) for answer in example.answers]
    wrong = [
        answer
        for answer in answers[_plain(example.question)]
        # An answer that holds the right one, or is part of it, may be right as well.
        if not any(words <= set(answer.split()) or set(answer.split()) <= words for words in own)
    ]
    return tuple(_random(seed, example.id).sample(wrong, min(len(wrong), MAX_WRONG_OPTIONS)))


# What a probe needs is said where a set has no such question.
PROBES: dict[ProbeName, tuple[Callable[[Sequence[Example], int], list[ProbeQuestion]], str]] = {
    ProbeName.blank: (blank, "no question shows a picture"),
    ProbeName.other_patient: (other_patient, "there are too few other pictures"),
    ProbeName.leading: (leading, "no question is answered with yes or no"),
    ProbeName.fake: (fake, "no question shows a picture"),
    ProbeName.none_of_the_above: (
        none_of_the_above,
        "no question has options, or two wrong answers among those to the same question",
    ),
}


def probe_questions(
    names: Iterable[ProbeName], examples: Sequence[Example], *, seed: int
) -> dict[ProbeName, list[ProbeQuestion]]:
    """Return each probe's questions on one set; empty where the probe does not apply."""
    return {name: PROBES[name][0](examples, seed) for name in dict.fromkeys(names)}


def _question(
    example: Example, name: str, *, falsehood: str = "", **changes: object
) -> ProbeQuestion:
    return ProbeQuestion(
        example=replace(example, id=f"{example.id}|{name}", **changes),  # type: ignore[arg-type]
        original_id=example.id,
        cluster="+".join(example.image_ids),
        falsehood=falsehood,
    )


def _is_yes_or_no(example: Example) -> bool:
    truths = {_plain(answer) for answer in example.answers}
    return not example.options and len(truths) == 1 and is_yes_or_no(example.answers[0])


def _plain(text: str) -> str:
    return normalize(text, Normalizer.medical)


def _random(seed: int, *names: str) -> random.Random:
    """Return a generator that depends on seed and names alone, not on the order of questions."""
    digest = hashlib.sha256("|".join((str(seed), *names)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8]))
