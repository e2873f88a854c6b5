"""The agent's tool: a question and images in, one text out, whatever happens."""

import functools
import logging
import os
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from medvqa.config.errors import MISTAKES, UserError, explain
from medvqa.models.prompt import DEFAULT
from medvqa.models.trained import read_trained
from medvqa.serve.answering import Answerer, Reply
from medvqa.serve.endpoint import Endpoint, PixelBudget
from medvqa.serve.errors import ErrorKind, ToolError
from medvqa.serve.intake import Intake, Question
from medvqa.serve.reference import Images
from medvqa.serve.tool_config import Resize, Service, ToolConfig, read_tool_config

log = logging.getLogger(__name__)

NAME = "great_brain_specialist"
DISCLAIMER = "Research software: this answer is not a diagnosis."
EMPTY = "(the model gave an empty answer)"
DESCRIPTION = (
    "Ask a vision-language model trained on medical images a question about one or more images, "
    "for example radiographs, CT or MR slices. It answers with a word or a short phrase. "
    "Research software: the answer is not a diagnosis."
)
QUERY = "The question, in English, about the images in the order in which they are listed."
IMAGES = (
    "The images: file paths or data:image/...;base64, URLs; nothing is fetched from the network. "
    "Leave it out to ask without an image; the answer then says so."
)
DEFAULT_NEW_TOKENS = 32


@dataclass(frozen=True)
class Specialist:
    """The tool: an intake, and the one service that answers.

    Attributes:
        intake: Checks what comes in.
        answer: Answers a question; there is no other service to fall back on.
        budget: Resizes images first; None leaves that to the service.
    """

    intake: Intake
    answer: Callable[[Question], Reply]
    budget: PixelBudget | None = None

    def great_brain_specialist(self, query: str, images: Images = None) -> str:
        """Return the answer with what is to be known about it, or `[kind] what went wrong`.

        Args:
            query: The question.
            images: Paths below the config's allowed roots, or data: URLs.
        """
        try:
            question = self.intake.accept(query, images)
            if self.budget is not None:
                resized = tuple(map(self.budget.resized, question.images))
                question = replace(question, images=resized)
            return rendered(question, self.answer(question))
        except ToolError as error:
            return str(error)
        except UserError as error:  # of the model in this process
            return str(ToolError(ErrorKind.model_refused, str(error)))
        except Exception as error:  # an agent reads the result; it must always be one
            # Without the error's own text, which may repeat an address or a key.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s in the tool:\n%s", type(error).__name__, where)
            return str(ToolError(ErrorKind.internal_error, f"{type(error).__name__}; see the log"))


def rendered(question: Question, answer: Reply) -> str:
    """Return the text for the agent: the answer, notes, and always the disclaimer."""
    lines = [answer.text or EMPTY]
    if answer.cut:
        lines.append("Note: the answer was cut at the limit of tokens.")
    if answer.confidence is not None and not answer.has_abstained:
        lines.append(f"Note: calibrated confidence {answer.confidence:.2f}.")
    if question.num_ignored:
        lines.append(
            f"Note: {question.num_ignored} empty image reference(s) (such as 'None') were ignored."
        )
    if not question.images:
        lines.append("Note: no image was used; the answer rests on the text of the question alone.")
    elif len(question.images) > 1:
        lines.append(f"Note: {len(question.images)} images were used.")
    return "\n".join([*lines, DISCLAIMER])


def build(config: ToolConfig, environment: Mapping[str, str] = os.environ) -> Specialist:
    """Return the tool that the config describes; a run in process is loaded now.

    Raises:
        UserError: If the run or the key is not there.
    """
    intake = Intake([Path(root) for root in config.allowed_roots], config.limits)
    if config.service is Service.in_process:
        assert config.run is not None
        answerer = Answerer.of_run(Path(config.run), device=config.device)
        return in_process(intake, answerer)
    assert config.base_url is not None and config.model is not None
    trained = None if config.run is None else read_trained(Path(config.run))
    own = DEFAULT_NEW_TOKENS if trained is None else trained.evaluation.max_new_tokens
    endpoint = Endpoint(
        base_url=config.base_url,
        model=config.model,
        api_key=config.api_key(environment),
        max_new_tokens=config.max_new_tokens or own,
        timeout_s=config.timeout_s,
        prompt=DEFAULT if trained is None else trained.prompt,
    )
    if trained is None or config.resize is Resize.endpoint:
        return Specialist(intake, endpoint.answer)
    return Specialist(intake, endpoint.answer, PixelBudget(trained.model))


def in_process(intake: Intake, answerer: Answerer) -> Specialist:
    """Return the tool around a model in this process."""
    return Specialist(intake, lambda question: answerer.answer([question])[0])


@functools.cache
def _configured() -> Specialist:
    return build(read_tool_config(Path(os.environ.get("MEDVQA_TOOL") or "tool.yaml")))


_loading = threading.Lock()


def great_brain_specialist(query: str, images: list[str] | None = None) -> str:
    """Ask the tool of the config that `MEDVQA_TOOL` names, else `tool.yaml` here; loaded once."""
    try:
        with _loading:
            specialist = _configured()
    except MISTAKES as error:
        return str(ToolError(ErrorKind.not_configured, explain(error)))
    return specialist.great_brain_specialist(query, images)
