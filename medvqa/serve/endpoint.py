"""A question answered by an endpoint that speaks OpenAI's chat completions, and by no other.

The endpoint gets the same input as the evaluator's model: the user message of the run's config
group `prompt`. It decodes greedily. Its answer is stripped as the evaluator strips answers.
"""

import io
import json
from dataclasses import dataclass, field
from typing import Any

from medvqa.config.model import ModelConfig
from medvqa.config.prompt import PromptConfig
from medvqa.config.secrets import masked
from medvqa.data.example import ImageSource
from medvqa.data.image import ImageBytes, load_rgb
from medvqa.models.families.qwen import PROCESSORS
from medvqa.models.prompt import chat_request, question_of
from medvqa.models.source import load_processor
from medvqa.serve.answering import Reply
from medvqa.serve.errors import ErrorKind, ToolError
from medvqa.serve.intake import Question

MAX_BODY_BYTES = 4_000_000  # an answer is a short phrase
MAX_REASON_CHARS = 200


@dataclass(kw_only=True)
class Endpoint:
    """A client of one model of one endpoint.

    Attributes:
        base_url: Up to and with /v1.
        model: What the endpoint calls it.
        api_key: Sent as a bearer token.
        max_new_tokens: Limit of an answer.
        timeout_s: For connecting, and for each wait for a part of the answer.
        prompt: What stands around each question.
    """

    base_url: str
    model: str
    api_key: str | None = field(repr=False)
    max_new_tokens: int
    timeout_s: float
    prompt: PromptConfig = field(default_factory=PromptConfig)

    def __post_init__(self) -> None:
        """Open the client; nothing is sent yet."""
        import httpx

        self._url = f"{self.base_url.rstrip('/')}/chat/completions"
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        # Neither a redirect nor a proxy of the environment: pictures go to the named service only.
        self._client = httpx.Client(
            headers=headers, timeout=self.timeout_s, follow_redirects=False, trust_env=False
        )

    def answer(self, question: Question) -> Reply:
        """Ask once.

        Raises:
            ToolError: If it cannot be reached, is too slow, refuses, or says what is no answer.
        """
        import httpx

        limit = self.max_new_tokens
        try:
            status, body = self._post(
                chat_request(
                    question_of(question.text, self.prompt),
                    [image.read() for image in question.images],
                    model=self.model,
                    max_new_tokens=min(question.max_new_tokens or limit, limit),
                    prompt=self.prompt,
                )
            )
        except httpx.TimeoutException:
            raise ToolError(
                ErrorKind.timeout, f"{self._url} did not answer in {self.timeout_s:g} s"
            ) from None
        except httpx.HTTPError as error:
            raise ToolError(
                ErrorKind.endpoint_unreachable,
                f"{self._url} cannot be reached ({type(error).__name__}); is it running?",
            ) from None
        if status != 200:
            reason = self._clean(_reason(body))
            raise ToolError(ErrorKind.endpoint_error, f"{self._url} answered {status}: {reason}")
        return self._parsed(body)

    def _post(self, request: dict[str, Any]) -> tuple[int, bytes]:
        with self._client.stream("POST", self._url, json=request) as response:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise ToolError(
                        ErrorKind.endpoint_error,
                        f"{self._url} answered with more than {MAX_BODY_BYTES:,} bytes",
                    )
            return response.status_code, bytes(body)

    def _parsed(self, body: bytes) -> Reply:
        notes: Any = None
        try:
            values = json.loads(body)
            choice, notes = values["choices"][0], values.get("medvqa")
            text = choice["message"]["content"]
            cut = choice.get("finish_reason") == "length"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise ToolError(
                ErrorKind.endpoint_error, f"{self._url} answered with no chat completion"
            )
        # `medvqa serve` says how sure a calibrated model is; other programs do not.
        confidence = notes.get("confidence") if isinstance(notes, dict) else None
        is_known = isinstance(confidence, float) and 0 <= confidence <= 1
        return Reply(
            text=text.strip(),
            cut=cut,
            confidence=confidence if is_known else None,
            has_abstained=is_known and notes.get("abstained") is True,
        )

    def _clean(self, reason: str) -> str:
        """Return one short line without a secret, which some services repeat."""
        if self.api_key:
            reason = reason.replace(self.api_key, "***")
        line = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
        return masked([line])[0][:MAX_REASON_CHARS]


class PixelBudget:
    """Images in the size that the evaluator gives them, for endpoints with another budget.

    A resized image is a multiple of the model's patches and within the budget. An endpoint that
    resizes again with the same or a wider budget does not change this image.
    """

    def __init__(self, model: ModelConfig) -> None:
        processor = load_processor(model)
        self._images: Any = processor.image_processor
        # Other families cut pictures into tiles, which no endpoint takes.
        self._has_budget = type(processor).__name__ in PROCESSORS

    def resized(self, image: ImageSource) -> ImageSource:
        """Return the image as the model sees it, as PNG."""
        from PIL import Image

        if not self._has_budget:
            return image
        picture = load_rgb(image)
        grid = self._images(images=[picture], return_tensors="pt")["image_grid_thw"][0]
        height, width = (int(n) * self._images.patch_size for n in grid[1:])
        if (width, height) == picture.size:
            return image
        buffer = io.BytesIO()
        picture.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
        return ImageBytes(image.name, buffer.getvalue())


def _reason(body: bytes) -> str:
    """Return what the service says of its error, in OpenAI's layout or another."""
    try:
        values = json.loads(body)
        error = values.get("error", values.get("detail", values))
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        return body[: 2 * MAX_REASON_CHARS].decode("utf-8", errors="replace")
