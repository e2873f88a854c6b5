"""The agent's tool: a question and images in, one text out, whatever happens."""

import logging
import os
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from medvqa.config.errors import MISTAKES, UserError, explain
from medvqa.models.trained import Trained, read_trained
from medvqa.serve.answering import Answer, Answerer, Question
from medvqa.serve.endpoint import Endpoint
from medvqa.serve.intake import Accepted, Intake
from medvqa.serve.pixel_budget import PixelBudget
from medvqa.serve.references import Images
from medvqa.serve.remote import Fetcher
from medvqa.serve.tool_config import Resize, Service, ToolConfig, config_place, read_tool_config
from medvqa.serve.tool_error import ErrorKind, ToolError

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
    "The images: file paths, data: URLs, or http(s) URLs where allowed. Leave it out to ask "
    "without an image; the answer then says so."
)
DEFAULT_NEW_TOKENS = 32


class Answering(Protocol):
    """What answers an accepted question."""

    def answer(self, question: Question) -> Answer:
        """Return the answer; raise `ToolError` if there is none."""


class InProcess:
    """A run in this process."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer

    def answer(self, question: Question) -> Answer:
        """Answer as the evaluator does."""
        try:
            return self._answerer.answer([question])[0]
        except UserError as error:
            raise ToolError(ErrorKind.model_refused, str(error)) from None


class Specialist:
    """The tool: an intake, and the one service that answers.

    Args:
        intake: Checks what comes in.
        answering: Answers; there is no other to fall back on.
        budget: Resizes images first; None leaves that to the service.
    """

    def __init__(
        self, intake: Intake, answering: Answering, budget: PixelBudget | None = None
    ) -> None:
        self._intake = intake
        self._answering = answering
        self._budget = budget

    def great_brain_specialist(self, query: str, images: Images = None) -> str:
        """Return the answer with what is to be known about it, or `[kind] what went wrong`.

        Args:
            query: The question.
            images: Paths, data: URLs or http(s) URLs, as far as the config allows them.
        """
        try:
            accepted = self._intake.accept(query, images)
            return rendered(accepted, self._answering.answer(self._question(accepted)))
        except ToolError as error:
            return str(error)
        except Exception as error:  # an agent reads the result; it must always be one
            # Without the error's own text, which may repeat an address or a key.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s in the tool:\n%s", type(error).__name__, where)
            return str(ToolError(ErrorKind.internal_error, f"{type(error).__name__}; see the log"))

    def _question(self, accepted: Accepted) -> Question:
        budget = self._budget
        images = accepted.images if budget is None else tuple(map(budget.resized, accepted.images))
        return Question(text=accepted.query, images=images)


def rendered(accepted: Accepted, answer: Answer) -> str:
    """Return the text for the agent: the answer, notes, and always the disclaimer."""
    lines = [answer.text or EMPTY]
    if answer.was_cut:
        lines.append("Note: the answer was cut at the limit of tokens.")
    if accepted.num_ignored:
        lines.append(
            f"Note: {accepted.num_ignored} empty image reference(s) (such as 'None') were ignored."
        )
    if answer.num_images == 0:
        lines.append("Note: no image was used; the answer rests on the text of the question alone.")
    elif answer.num_images > 1:
        lines.append(f"Note: {answer.num_images} images were used.")
    return "\n".join([*lines, DISCLAIMER])


def build(config: ToolConfig, environment: Mapping[str, str] = os.environ) -> Specialist:
    """Return the tool that the config describes; a run in process is loaded now.

    Raises:
        UserError: If the run or the key is not there.
    """
    limits = config.limits
    fetcher = (
        Fetcher(config.allowed_hosts, max_bytes=limits.max_image_bytes, timeout_s=config.timeout_s)
        if config.allowed_hosts
        else None
    )
    intake = Intake([Path(root) for root in config.allowed_roots], limits, fetcher)
    if config.service is Service.in_process:
        assert config.run is not None
        answerer = Answerer.of_run(Path(config.run), device=config.device)
        return Specialist(intake, InProcess(answerer))
    trained = None if config.run is None else read_trained(Path(config.run))
    wants_budget = trained is not None and config.resize is Resize.tool
    budget = PixelBudget(trained.model) if trained and wants_budget else None
    return Specialist(intake, _endpoint(config, trained, environment), budget)


def _endpoint(
    config: ToolConfig, trained: Trained | None, environment: Mapping[str, str]
) -> Endpoint:
    assert config.base_url is not None and config.model is not None
    own = DEFAULT_NEW_TOKENS if trained is None else trained.evaluation.max_new_tokens
    return Endpoint(
        base_url=config.base_url,
        model=config.model,
        api_key=config.api_key(environment),
        max_new_tokens=config.max_new_tokens or own,
        timeout_s=config.timeout_s,
    )


_default: Specialist | None = None
_default_lock = threading.Lock()


def great_brain_specialist(query: str, images: list[str] | None = None) -> str:
    """Ask the tool of the config that `MEDVQA_TOOL` names, else `tool.yaml` here; loaded once."""
    global _default
    with _default_lock:
        if _default is None:
            try:
                _default = build(read_tool_config(config_place()))
            except MISTAKES as error:
                return str(ToolError(ErrorKind.not_configured, explain(error)))
    return _default.great_brain_specialist(query, images)
