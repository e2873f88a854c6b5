"""Texts that the tiny base is pre-trained on: descriptions and statements, never a question."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from medvqa.data.example import Example
from medvqa.data.phantom import (
    CHOICE_TEXTS,
    CLOSED_TEXTS,
    NEEDS_A_LESION,
    NUM_SCENES,
    OPEN_TEXTS,
    claim,
    draw_scene,
    fact_value,
)
from medvqa.data.phantom_drawing import PhantomImage, Scene

if TYPE_CHECKING:
    import numpy as np

FIELD_PROMPTS = {
    "modality": "modality:",
    "organ": "organ:",
    "count": "number of lesions:",
    "side": "side:",
    "tone": "tone:",
    "size": "size:",
}


def pretraining_examples(num_scenes: int, *, seed: int) -> Iterator[Example]:
    """Yield about seven texts per scene; the scenes come from a generator of their own."""
    import numpy as np

    rng = np.random.default_rng([seed, len(NUM_SCENES)])
    previous: PhantomImage | None = None
    for number in range(num_scenes):
        image = PhantomImage(f"phantom-pretraining-{number:06d}", draw_scene(rng))
        scene = image.scene
        texts = [("describe the image.", describe(scene))]
        facts = [fact for fact in FIELD_PROMPTS if scene.num_lesions or fact not in NEEDS_A_LESION]
        for fact in rng.permutation(facts)[:3]:
            texts.append((FIELD_PROMPTS[str(fact)], fact_value(scene, str(fact))))
        texts.append(("lesions:", "yes" if scene.num_lesions else "no"))
        for fact in rng.permutation(facts)[:3]:
            words, is_true = claim(str(fact), scene, rng)
            claimed = f"{words} or more" if fact == "count" else words
            texts.append((f"statement: {claimed}", "true" if is_true else "false"))
        for part, (prompt, text) in enumerate(texts):
            yield _pretraining_example(f"{number}-{part}", (image,), prompt, text)
        if previous is not None:
            pair = (previous, image)
            for part, (prompt, text) in enumerate(_pair_texts(previous.scene, scene, rng)):
                yield _pretraining_example(f"{number}-pair-{part}", pair, prompt, text)
        previous = image


def _pair_texts(
    first: Scene, second: Scene, rng: "np.random.Generator"
) -> Iterator[tuple[str, str]]:
    number = int(rng.integers(2))
    yield f"organ {('first', 'second')[number]}:", (first, second)[number].organ
    yield "statement: same organ", "true" if first.organ == second.organ else "false"
    if first.num_lesions != second.num_lesions:
        yield "more lesions:", "first" if first.num_lesions > second.num_lesions else "second"


def _pretraining_example(
    name: str, images: tuple[PhantomImage, ...], prompt: str, text: str
) -> Example:
    return Example(
        id=f"phantom-pretraining-{name}",
        images=images,
        question=prompt,
        answers=(text,),
        answer_type="open",
        type_origin="rule",
        source="phantom",
        split="pretraining",
        image_ids=tuple(image.name for image in images),
    )


def describe(scene: Scene) -> str:
    """Return all facts as one caption."""
    caption = f"{scene.modality} of the {scene.organ}. "
    if not scene.num_lesions:
        return caption + "no lesion."
    lesions = "lesion" if scene.num_lesions == 1 else "lesions"
    return caption + (
        f"{scene.num_lesions} {scene.tone} {scene.size} {lesions} on the {scene.side} side."
    )


def vocabulary_texts() -> Iterator[str]:
    """Yield texts whose words the tiny tokenizer shall know as few tokens."""
    for texts in (*OPEN_TEXTS.values(), *CLOSED_TEXTS.values(), CHOICE_TEXTS.values()):
        yield from texts
    yield from FIELD_PROMPTS.values()
    for example in pretraining_examples(400, seed=0):
        yield f"{example.question}\n{example.answers[0]}"
    yield "Which image shows more lesions, the first or the second?"
    yield "Do both images show the same organ? Which organ does the second image show? yes no"
