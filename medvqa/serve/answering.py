"""A trained model in process: the evaluator's prompt, pixel budget and post-processing."""

import hashlib
import math
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.model import Device
from medvqa.data.example import Example, ImageSource
from medvqa.data.image import ImageBytes, image_size
from medvqa.evaluation.calibration import scale
from medvqa.evaluation.confidence import answer_confidence
from medvqa.evaluation.generate import Answer, generate
from medvqa.evaluation.phase_scores import read_evaluations
from medvqa.models.encode import encoder_of
from medvqa.models.loaded import LoadedModel
from medvqa.models.patches import Patches
from medvqa.models.prompt import question_of
from medvqa.models.sample import Sample
from medvqa.models.trained import Trained, load_trained, read_trained
from medvqa.serve.intake import Question
from medvqa.serve.pixels import PixelLimit

CACHED_IMAGES = 64  # a client asks several questions about one picture; a server has many clients
PIXELS_AT_ONCE = 50_000_000  # decoded and resized in float32 they take about 1 GB


@dataclass(frozen=True, kw_only=True)
class Reply(Answer):
    """The model's answer with its confidence; 0 tokens if an endpoint does not count them.

    Attributes:
        num_prompt_tokens: Tokens of the prompt, those of images included.
        confidence: Calibrated, where the model is; None otherwise.
        has_abstained: Whether the confidence is below the certified threshold; `text` says so.
    """

    num_prompt_tokens: int = 0
    confidence: float | None = None
    has_abstained: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An encoded question.

    Attributes:
        example: The question with the names of its pictures, without the pictures themselves.
        max_new_tokens: Limit of the answer.
    """

    example: Example
    sample: Sample
    max_new_tokens: int


class Answerer:
    """A trained model that answers; several threads may ask it.

    The questions of one call are answered as one batch.
    """

    def __init__(self, trained: Trained, loaded: LoadedModel) -> None:
        self.trained = trained
        self.name = trained.name
        self._loaded = loaded
        self._config = trained.evaluation
        self.max_new_tokens = self._config.max_new_tokens
        self.batch_size = self._config.batch_size
        patches = Patches(max_images=CACHED_IMAGES)
        self._encoder = encoder_of(loaded, trained.model, patches, trained.prompt)
        # Tokens that only the prompt may hold: a question with one would speak in its place.
        # Gemma's vocabulary also adds runs of spaces and newlines.
        added = loaded.processor.tokenizer.get_added_vocab()
        self._control_tokens = tuple(sorted(token for token in added if token.strip(" \n\t\u2581")))
        self._lock = threading.Lock()
        self._calibration = trained.calibration
        self._pixel_limit = PixelLimit(PIXELS_AT_ONCE)

    @classmethod
    def of_run(
        cls, directory: Path, *, device: Device = Device.auto, base: str | None = None
    ) -> "Answerer":
        """Load a finished run, or an exported or merged directory.

        Raises:
            UserError: If there is none, or this machine cannot load it.
        """
        trained = read_trained(directory)
        return cls(trained, load_trained(trained, device=device, base=base))

    def describe(self) -> dict[str, Any]:
        """Return the model's description for a page or a health check."""
        model = self.trained.model
        return {
            "name": self.name,
            "kind": self.trained.kind.value,
            "base": model.name,
            "revision": self.trained.revision,
            "adapter_sha256": self.trained.adapter_sha256(),
            "min_pixels": model.min_pixels,
            "max_pixels": model.max_pixels,
            "max_new_tokens": self.max_new_tokens,
            "device": str(self._loaded.device),
            "dtype": str(self._loaded.dtype).removeprefix("torch."),
            "metrics": {
                evaluation.set_name: {
                    metric: asdict(score) for metric, score in evaluation.summary["overall"].items()
                }
                for evaluation in read_evaluations(self.trained.directory)
                if evaluation.phase in ("final", "merged")
            },
        }

    def prepare(self, question: Question) -> Prepared:
        """Encode the question, pictures included; several threads may do so at once.

        Raises:
            UserError: If it cannot be asked: a broken image, a control token, more tokens than
                the model was trained on.
        """
        self._check_text(question.text)
        example = Example(
            id="",
            images=question.images,
            question=question_of(question.text, self.trained.prompt),
            answers=("",),
            answer_type="open",
            type_origin="rule",
            source="question",
            split="",
            # By content: pictures of two clients may have the same name.
            image_ids=tuple(_image_id(image) for image in question.images),
        )
        # The pictures of one question are decoded one after the other.
        with self._pixel_limit.hold(max(map(_num_pixels, question.images), default=0)):
            sample = self._encode(example)
        names = tuple(ImageBytes(name, b"") for name in example.image_ids)
        limit = min(question.max_new_tokens or self.max_new_tokens, self.max_new_tokens)
        return Prepared(example=replace(example, images=names), sample=sample, max_new_tokens=limit)

    def answer(self, questions: Sequence[Question]) -> list[Reply]:
        """Answer the questions, in their order; raise a `UserError` as `prepare` does."""
        return self.answer_prepared([self.prepare(question) for question in questions])

    def answer_prepared(self, prepared: Sequence[Prepared]) -> list[Reply]:
        """Answer the questions as one batch, in their order."""
        answers: dict[int, Reply] = {}
        with self._lock:
            for limit in sorted({own.max_new_tokens for own in prepared}):
                indices = [i for i, own in enumerate(prepared) if own.max_new_tokens == limit]
                batch = generate(
                    self._loaded,
                    self._encoder,
                    [prepared[i].example for i in indices],
                    max_new_tokens=limit,
                    batch_size=self.batch_size,
                    decoding=self._config.decoding,
                    samples=[prepared[i].sample for i in indices],
                )
                for i, own in zip(indices, batch, strict=True):
                    num_prompt_tokens = len(prepared[i].sample.prompt_ids)
                    reply = Reply(**vars(own), num_prompt_tokens=num_prompt_tokens)
                    answers[i] = self._with_confidence(reply)
        return [answers[i] for i in range(len(prepared))]

    def _with_confidence(self, reply: Reply) -> Reply:
        """Return the reply with its confidence, or an abstention; as it is if not calibrated."""
        if self._calibration is None:
            return reply
        raw = answer_confidence((reply.logprob or 0.0) / max(reply.num_tokens, 1))
        confidence = scale(raw, float(self._calibration["temperature"]))
        threshold = self._calibration["threshold"]
        if threshold is not None and confidence >= threshold:
            return replace(reply, confidence=confidence)
        text = f"(no answer: confidence {confidence:.2f} is below the certified threshold)"
        return replace(reply, text=text, confidence=confidence, has_abstained=True)

    def _encode(self, example: Example) -> Sample:
        try:
            return self._encoder.encode(example)
        except UserError:
            raise
        except ValueError as error:  # of the image processor, for example on the aspect ratio
            raise UserError(f"the model's image processor refuses the image: {error}") from error

    def _check_text(self, text: str) -> None:
        if not text.strip():
            raise UserError("the question is empty")
        for token in self._control_tokens:
            if token in text:
                raise UserError(f"the question holds the model's control token {token!r}")


def _image_id(image: ImageSource) -> str:
    digest: str | None = getattr(image, "digest", None)
    return digest or hashlib.sha256(image.read()).hexdigest()


def _num_pixels(image: ImageSource) -> int:
    return int(getattr(image, "num_pixels", 0)) or math.prod(image_size(image))
