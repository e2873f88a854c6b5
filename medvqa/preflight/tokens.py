"""Tokens of each sample, images included, from the processor alone."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medvqa.config.errors import UserError
from medvqa.config.model import ModelConfig
from medvqa.config.prompt import PromptConfig
from medvqa.config.schema import Config
from medvqa.data.example import Example, ImageSource
from medvqa.data.image import image_size
from medvqa.models.encode import Encoder
from medvqa.models.families.qwen import MAX_PIXELS
from medvqa.models.prompt import DEFAULT, question_text, user_message
from medvqa.models.sample import TokenCount
from medvqa.models.source import hub_answers, load_processor
from medvqa.preflight.model_shapes import PUBLISHED
from medvqa.tracking.progress import track

QUANTILES = (0.0, 0.5, 0.95, 0.99, 1.0)
SHOWN_IDS = 5
CHARACTERS_A_TOKEN = 3.0  # English needs about one token for four
TEMPLATE_TOKENS = 40  # roles, markers and the default system turn of a chat


@dataclass(frozen=True, kw_only=True)
class TokenReport:
    """Lengths of the samples of one pool or set.

    Attributes:
        num_counted: Samples counted; below `num_samples` it is a seeded sample.
        quantiles: Share of samples -> tokens that so many do not exceed.
        mean_image_tokens: Of a sample, all its images together.
        num_too_long: Counted samples above `model.max_length_tokens`.
        too_long: The first ids of these, with their tokens.
        is_estimate: Whether the texts were estimated for want of the processor; see `Estimator`.
    """

    num_samples: int
    num_counted: int
    is_estimate: bool
    quantiles: Mapping[str, int]
    mean_image_tokens: float
    num_too_long: int
    too_long: tuple[str, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest counted sample."""
        return self.quantiles["1"]


class Estimator:
    """Counts a published model's image tokens as its processor would, and estimates its texts.

    For where the processor cannot be had; texts come out too long rather than too short.
    """

    def __init__(self, config: ModelConfig, prompt: PromptConfig = DEFAULT) -> None:
        self.config = config
        self.prompt = prompt
        self.max_length_tokens = config.max_length_tokens
        self._pixels_a_token_side = 2 * (16 if "Qwen3" in config.name else 14)

    def count(self, example: Example) -> TokenCount:
        """Return the sample's tokens."""
        message = user_message(question_text(example), num_images=0, prompt=self.prompt)
        text = message["content"][0]["text"] + example.answers[0]
        num_text = TEMPLATE_TOKENS + math.ceil(len(text) / CHARACTERS_A_TOKEN)
        return TokenCount(num_text, sum(self._count_image(image) for image in example.images))

    def _count_image(self, image: ImageSource) -> int:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        width, height = image_size(image)
        side = self._pixels_a_token_side
        budget = {
            "min_pixels": self.config.min_pixels,
            "max_pixels": self.config.max_pixels or MAX_PIXELS,
        }
        resized_height, resized_width = smart_resize(height, width, side, **budget)
        return int(resized_height // side * (resized_width // side))


def count_tokens(
    encoder: Encoder | Estimator,
    examples: Sequence[Example],
    *,
    at_most: int | None,
    seed: int,
    always: frozenset[str] = frozenset(),
) -> TokenReport:
    """Count the samples' tokens; nothing is decoded, a picture's head tells its size.

    Args:
        encoder: With the model's processor and limit.
        examples: The pool or set.
        at_most: Count a seeded sample of so many; all if None.
        seed: Of that sample.
        always: Ids that are counted whatever the sample: those that a run consumes.
    """
    chosen: Sequence[Example] = examples
    if at_most is not None and at_most < len(examples):
        drawn = set(random.Random(seed).sample(range(len(examples)), at_most))
        chosen = [e for n, e in enumerate(examples) if n in drawn or e.id in always]
    counts = [encoder.count(e) for e in track(chosen, description="counting tokens")]
    totals = sorted(count.total for count in counts)
    too_long = [
        f"{example.id} ({count.total})"
        for example, count in zip(chosen, counts, strict=True)
        if count.total > encoder.max_length_tokens
    ]
    return TokenReport(
        num_samples=len(examples),
        num_counted=len(chosen),
        is_estimate=isinstance(encoder, Estimator),
        quantiles={f"{q:g}": totals[min(len(totals) - 1, int(q * len(totals)))] for q in QUANTILES},
        mean_image_tokens=sum(count.image for count in counts) / len(counts),
        num_too_long=len(too_long),
        too_long=tuple(too_long[:SHOWN_IDS]),
    )


def encoder_for(config: Config) -> Encoder | Estimator:
    """Return what counts tokens: the processor, or where that is unavailable an estimator.

    Raises:
        UserError: If the processor is unavailable and no table knows the model.
    """
    model = config.model
    try:
        processor = load_processor(model, local_only=not hub_answers())
    except UserError:
        if model.path is None and model.name in PUBLISHED:
            return Estimator(model, config.prompt)
        raise
    return Encoder(processor, max_length_tokens=model.max_length_tokens, prompt=config.prompt)
