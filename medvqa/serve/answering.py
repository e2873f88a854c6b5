"""A trained model in process: the evaluator's prompt, pixel budget and post-processing."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.model import Device
from medvqa.data.example import Example, ImageSource
from medvqa.data.image import ImageBytes
from medvqa.evaluation.evaluate import read_evaluations
from medvqa.evaluation.generate import generate
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.models.patches import Patches
from medvqa.models.prompt import question_of
from medvqa.models.trained import Trained, load_trained, read_trained

CACHED_IMAGES = 64  # a client asks several questions about one picture; a server has many clients


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about no, one or several images.

    Attributes:
        images: In the order in which the text speaks of them.
        max_new_tokens: A limit below the evaluator's; the evaluator's own if None.
    """

    text: str
    images: tuple[ImageSource, ...]
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The model's answer.

    Attributes:
        num_images: Images that the model was shown.
        was_cut: Whether the limit of tokens ended it.
        num_tokens: New tokens, the end of the turn included; 0 if an endpoint did not say.
    """

    text: str
    num_images: int
    was_cut: bool
    num_tokens: int = 0


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
        self._encoder = Encoder(
            loaded.processor,
            max_length_tokens=trained.model.max_length_tokens,
            patches=Patches(max_images=CACHED_IMAGES),
            pixel_dtype=loaded.dtype,
            prompt=trained.prompt,
        )
        # Tokens that only the prompt may hold: a question with one would speak in its place.
        # Gemma's vocabulary also adds runs of spaces and newlines.
        added = loaded.processor.tokenizer.get_added_vocab()
        self._control_tokens = tuple(sorted(token for token in added if token.strip(" \n\t\u2581")))
        self._lock = threading.Lock()

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

    def check(self, question: Question) -> int:
        """Return the number of tokens of the prompt.

        Raises:
            UserError: Whatever would make `answer` refuse the question.
        """
        return len(self._encoder.encode(self._example(question, 0)).prompt_ids)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer the questions, in their order.

        Raises:
            UserError: On the first question that cannot be asked: a broken image, a control token,
                more tokens than the model was trained on.
        """
        examples = [self._example(question, i) for i, question in enumerate(questions)]
        limits = [self._limit(question) for question in questions]
        answers: dict[int, Answer] = {}
        with self._lock:
            for limit in sorted(set(limits)):
                indices = [i for i, own in enumerate(limits) if own == limit]
                batch = generate(
                    self._loaded,
                    self._encoder,
                    [examples[i] for i in indices],
                    max_new_tokens=limit,
                    batch_size=self.batch_size,
                    decoding=self._config.decoding,
                )
                for place, i in enumerate(indices):
                    answers[i] = Answer(
                        text=batch.texts[place],
                        num_images=len(examples[i].images),
                        was_cut=batch.cut[place],
                        num_tokens=batch.num_tokens[place],
                    )
        return [answers[i] for i in range(len(questions))]

    def _limit(self, question: Question) -> int:
        return min(question.max_new_tokens or self.max_new_tokens, self.max_new_tokens)

    def _example(self, question: Question, index: int) -> Example:
        if not question.text.strip():
            raise UserError("the question is empty")
        for token in self._control_tokens:
            if token in question.text:
                raise UserError(f"the question holds the model's control token {token!r}")
        images = tuple(ImageBytes(image.name, image.read()) for image in question.images)
        return Example(
            id=str(index),
            images=images,
            question=question_of(question.text, self.trained.prompt),
            answers=("",),
            answer_type="open",
            type_origin="rule",
            source="question",
            split="",
            # By content: pictures of two clients may have the same name.
            image_ids=tuple(hashlib.sha256(image.data).hexdigest() for image in images),
        )
