"""A trained model in process: the evaluator's prompt, pixel budget and post-processing."""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.evaluation import EvaluationConfig
from medvqa.config.model import Device
from medvqa.data.example import Example, ImageSource
from medvqa.data.image import ImageBytes
from medvqa.evaluation.evaluate import read_evaluations
from medvqa.evaluation.generate import generate
from medvqa.models.encode import Encoder
from medvqa.models.loaded import LoadedModel
from medvqa.models.patches import Patches
from medvqa.models.trained import Trained, load_trained, read_trained

CACHED_IMAGES = 64  # a client asks several questions about one picture; a server has many clients


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked.

    Attributes:
        images: In the order in which the text speaks of them; none asks the model as text-only.
        max_new_tokens: A limit below the evaluator's; the evaluator's own where None.
    """

    text: str
    images: tuple[ImageSource, ...]
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model says.

    Attributes:
        num_images: Pictures that it was shown.
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
        self._loaded = loaded
        self._config: EvaluationConfig = trained.evaluation
        self._encoder = Encoder(
            loaded.processor,
            max_length_tokens=trained.model.max_length_tokens,
            patches=Patches(max_images=CACHED_IMAGES),
            pixel_dtype=loaded.dtype,
        )
        vocabulary = loaded.processor.tokenizer.get_added_vocab()
        # What only the prompt may say: a question with such a token would speak in its place.
        self._control_tokens = tuple(sorted(vocabulary))
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

    @property
    def name(self) -> str:
        """The model's id: the run's name."""
        return self.trained.name

    @property
    def directory(self) -> Path:
        """Where it was loaded from."""
        return self.trained.directory

    @property
    def max_new_tokens(self) -> int:
        """The evaluator's limit."""
        return self._config.max_new_tokens

    @property
    def batch_size(self) -> int:
        """Questions that the evaluator answers at once."""
        return self._config.batch_size

    def describe(self) -> dict[str, Any]:
        """Return what a page or a health check says of the model."""
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
        example = self._example(question, 0)
        with _own_names([question], [example]):
            return len(self._encoder.encode(example).prompt_ids)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer the questions, in their order.

        Raises:
            UserError: On the first question that cannot be asked: a broken image, a control token,
                more tokens than the model was trained on.
        """
        examples = [self._example(question, i) for i, question in enumerate(questions)]
        limits = [self._limit(question) for question in questions]
        answers: dict[int, Answer] = {}
        with self._lock, _own_names(questions, examples):
            for limit in sorted(set(limits)):
                indices = [i for i, own in enumerate(limits) if own == limit]
                found = generate(
                    self._loaded,
                    self._encoder,
                    [examples[i] for i in indices],
                    max_new_tokens=limit,
                    batch_size=self._config.batch_size,
                    decoding=self._config.decoding,
                )
                for place, i in enumerate(indices):
                    answers[i] = Answer(
                        text=found.texts[place],
                        num_images=len(examples[i].images),
                        was_cut=found.cut[place],
                        num_tokens=found.num_tokens[place],
                    )
        return [answers[i] for i in range(len(questions))]

    def _limit(self, question: Question) -> int:
        asked = question.max_new_tokens
        return self.max_new_tokens if asked is None else min(asked, self.max_new_tokens)

    def _example(self, question: Question, index: int) -> Example:
        if not question.text.strip():
            raise UserError("the question is empty")
        for token in self._control_tokens:
            if token in question.text:
                raise UserError(f"the question holds the model's control token {token!r}")
        images, ids = [], []
        for source in question.images:
            data = source.read()
            digest = hashlib.sha256(data).hexdigest()
            # Named by its bytes: pictures of two clients may have the same name.
            images.append(ImageBytes(name=digest, data=data))
            ids.append(digest)
        return Example(
            id=str(index),
            images=tuple(images),
            question=question.text,
            answers=("",),
            answer_type="open",
            type_origin="rule",
            source="question",
            split="",
            image_ids=tuple(ids),
        )


@contextmanager
def _own_names(questions: Sequence[Question], examples: Sequence[Example]) -> Iterator[None]:
    """Call a picture in an error as its owner does."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for question, example in zip(questions, examples, strict=True):
            for source, digest in zip(question.images, example.image_ids, strict=True):
                text = text.replace(digest, source.name)
        raise UserError(text) from error
