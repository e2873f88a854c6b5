"""Errors of the agent's tool and of the server, and the check for missing packages."""

from enum import Enum
from importlib import util

from medvqa.config.errors import UserError


class ErrorKind(Enum):
    """Why a question was not answered."""

    query_empty = "query_empty"
    query_too_long = "query_too_long"
    query_not_allowed = "query_not_allowed"
    too_many_images = "too_many_images"
    image_not_allowed = "image_not_allowed"
    image_missing = "image_missing"
    image_unreadable = "image_unreadable"
    too_large = "too_large"
    timeout = "timeout"
    endpoint_unreachable = "endpoint_unreachable"
    endpoint_error = "endpoint_error"
    model_refused = "model_refused"
    invalid_arguments = "invalid_arguments"
    not_configured = "not_configured"
    internal_error = "internal_error"


class ToolError(Exception):
    """A question that cannot be answered; its text holds no secret and no file's content."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"[{self.kind.value}] {self.message}"


class RequestError(Exception):
    """A request that is not answered, in the words of OpenAI's error object."""

    def __init__(
        self, message: str, code: str, param: str | None = None, *, status: int = 400
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        param = None if param is None else sendable(param)
        self.body = {
            "error": {"message": sendable(message), "type": kind, "param": param, "code": code}
        }


def sendable(text: str) -> str:
    """Return the text so that it can be sent: halves of surrogate pairs are escaped, at most 1 kB.

    A field's name may be anything, since it comes from the client.
    """
    return text[:1000].encode("utf-8", "backslashreplace").decode("utf-8")


def overloaded(reason: str) -> RequestError:
    """Return the error of a request that the server has no room for."""
    return RequestError(reason, "overloaded", status=503)


def require(*packages: str) -> None:
    """Raise a `UserError` if a package of the extra `serve` is not installed."""
    missing = [package for package in packages if util.find_spec(package) is None]
    if missing:
        raise UserError(f'{", ".join(missing)} not installed: pip install -e ".[serve]"')
