"""Phantoms: drawn pictures with open and closed questions that are true by construction.

Open and closed questions are about the same facts, so what one type teaches can help the other.
Splits share no picture; `shifted` shows the same facts in a modality that training never saw.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medvqa.config.data import RowsConfig
from medvqa.config.errors import UserError
from medvqa.data.bad_rows import BadRows
from medvqa.data.example import AnswerType, Example
from medvqa.data.phantom_drawing import CHOICES, MODALITIES, SHIFTED_MODALITY, PhantomImage, Scene

if TYPE_CHECKING:
    import numpy as np

QUESTIONS_PER_SCENE = 4
NUM_SCENES = {"train": 1000, "validation": 125, "test": 125, "shifted": 125}
PAIR_FRACTION = 0.15


@dataclass(frozen=True)
class Question:
    """One question about one or two scenes with its true answer."""

    text: str
    answer: str
    answer_type: AnswerType


def load(config: RowsConfig, seed: int, bad_rows: BadRows) -> list[Example]:
    """Draw the split's examples; the same seed gives the same ones.

    Raises:
        UserError: If there is no such split.
    """
    if config.split not in NUM_SCENES:
        known = ", ".join(NUM_SCENES)
        raise UserError(f"phantom has no split {config.split!r}; it has {known}")
    import numpy as np

    split = config.split
    rng = np.random.default_rng([seed, list(NUM_SCENES).index(split)])
    modalities = (SHIFTED_MODALITY,) if split == "shifted" else MODALITIES
    scenes = [draw_scene(rng, modalities) for _ in range(NUM_SCENES[split])]
    images = [PhantomImage(f"phantom-{split}-{n:06d}", s) for n, s in enumerate(scenes)]
    examples = []
    for number, image in enumerate(images):
        for part, kind in enumerate(_choose_kinds(image.scene, rng, shifted=split == "shifted")):
            pictures: tuple[PhantomImage, ...] = (image,)
            if rng.random() < PAIR_FRACTION:
                other = images[int(rng.integers(len(images)))]
                pictures = (image, other)
                question = ask_about_pair(image.scene, other.scene, rng)
            else:
                question = ask(kind, image.scene, rng)
            examples.append(
                Example(
                    id=f"phantom-{split}-{number:06d}-{part}",
                    images=pictures,
                    question=question.text,
                    answers=(question.answer,),
                    answer_type=question.answer_type,
                    type_origin="official",
                    source="phantom",
                    split=split,
                    image_ids=tuple(i.name for i in pictures),
                )
            )
    return examples


def draw_scene(rng: "np.random.Generator", modalities: tuple[str, ...] = MODALITIES) -> Scene:
    """Draw all facts independently of each other."""
    return Scene(
        modality=_one_of(modalities, rng),
        organ=_one_of(CHOICES["organ"], rng),
        num_lesions=int(rng.choice(4, p=[0.16, 0.28, 0.28, 0.28])),
        side=_one_of(CHOICES["side"], rng),
        tone=_one_of(CHOICES["tone"], rng),
        size=_one_of(CHOICES["size"], rng),
        seed=int(rng.integers(2**62)),
    )


OPEN_TEXTS = {
    "modality": ("Which imaging modality is shown?", "What kind of scan is this?"),
    "organ": ("Which organ is shown?", "What part of the body is this?"),
    "count": ("How many lesions are visible?", "What is the number of lesions seen?"),
    "side": ("Which side are the lesions on?", "Where are the lesions located?"),
    "tone": ("How do the lesions appear?", "What is the intensity of the lesions?"),
    "size": ("How big are the lesions?", "What is the size of the lesions?"),
}
CLOSED_TEXTS = {
    "modality": ("Is this a {} image?", "Was this taken with {}?"),
    "organ": ("Is this the {}?", "Does this picture show the {}?"),
    "count": ("Are there at least {} lesions?", "Can {} or more lesions be seen?"),
    "side": ("Are the lesions on the {} side?", "Is the {} side affected?"),
    "tone": ("Are the lesions {}?", "Do the lesions look {}?"),
    "size": ("Are these lesions {}?", "Would you call the lesions {}?"),
}
CHOICE_TEXTS = {
    "side": "Are the lesions on the left or on the right?",
    "tone": "Are the lesions bright or dark?",
    "size": "Are the lesions small or large?",
}
NEEDS_A_LESION = ("side", "tone", "size")


def _choose_kinds(scene: Scene, rng: "np.random.Generator", *, shifted: bool) -> list[str]:
    """Return two open and two closed kinds that the scene can answer."""
    facts = [fact for fact in OPEN_TEXTS if scene.num_lesions or fact not in NEEDS_A_LESION]
    if shifted:  # its modality has no name that training could have taught
        facts.remove("modality")
    choices = [f"choice-{fact}" for fact in CHOICE_TEXTS if fact in facts]
    closed = [f"closed-{fact}" for fact in facts] + choices
    return [
        str(kind)
        for kinds in ([f"open-{fact}" for fact in facts], closed)
        for kind in rng.permutation(kinds)[: QUESTIONS_PER_SCENE // 2]
    ]


def ask(kind: str, scene: Scene, rng: "np.random.Generator") -> Question:
    """Return a question of the kind `open-`, `closed-` or `choice-` and the fact it is about."""
    form, fact = kind.split("-")
    if form == "open":
        return Question(_one_of(OPEN_TEXTS[fact], rng), fact_value(scene, fact), "open")
    if form == "choice":
        return Question(CHOICE_TEXTS[fact], fact_value(scene, fact), "closed")
    value, is_true = claim(fact, scene, rng)
    text = _one_of(CLOSED_TEXTS[fact], rng).format(value)
    return Question(text, "yes" if is_true else "no", "closed")


def ask_about_pair(first: Scene, second: Scene, rng: "np.random.Generator") -> Question:
    """Return a question that needs both images."""
    kind = int(rng.integers(3))
    if kind == 0 and first.num_lesions != second.num_lesions:
        more = "first" if first.num_lesions > second.num_lesions else "second"
        text = "Which image shows more lesions, the first or the second?"
        return Question(text, more, "closed")
    if kind == 1:
        same = first.organ == second.organ
        return Question("Do both images show the same organ?", "yes" if same else "no", "closed")
    number, scene = (("first", first), ("second", second))[int(rng.integers(2))]
    return Question(f"Which organ does the {number} image show?", scene.organ, "open")


def fact_value(scene: Scene, fact: str) -> str:
    """Return the true value of a fact as a text."""
    return str(scene.num_lesions) if fact == "count" else str(getattr(scene, fact))


def claim(fact: str, scene: Scene, rng: "np.random.Generator") -> tuple[str, bool]:
    """Return a value to ask about and whether it holds; a coin decides which, where it can."""
    wants_true = bool(rng.random() < 0.5)
    if fact == "count":
        low, high = (1, scene.num_lesions) if wants_true else (scene.num_lesions + 1, 4)
        if low > high:  # no lesion: "at least one" is false whatever the coin says
            low, high, wants_true = 1, 4, False
        return str(int(rng.integers(low, high + 1))), wants_true
    truth = fact_value(scene, fact)
    if wants_true:
        return truth, True
    return _one_of(tuple(c for c in CHOICES[fact] if c != truth), rng), False


def _one_of(texts: tuple[str, ...], rng: "np.random.Generator") -> str:
    return texts[int(rng.integers(len(texts)))]
