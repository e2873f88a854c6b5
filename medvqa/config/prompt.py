"""The config group `prompt`: what stands around a question, and where its images stand."""

from dataclasses import dataclass
from enum import Enum

from medvqa.config.bounds import check

QUESTION = "{question}"


class Images(Enum):
    """Where the images stand in the user's turn."""

    first = "first"
    last = "last"


@dataclass(kw_only=True)
class PromptConfig:
    """The user's turn of every question, in training, evaluation and serving.

    Attributes:
        text: The turn's text, with `{question}` once.
        images: Before or after the text.
    """

    text: str = "{question}\nAnswer with a word or a short phrase."
    images: Images = Images.first

    def __post_init__(self) -> None:
        """Check that the question is asked."""
        check(
            self.text.count(QUESTION) == 1,
            f"prompt.text must hold {QUESTION} exactly once, got {self.text!r}",
        )
