"""The HTTP side: chat completions, models, health; errors are OpenAI's objects, never a page."""

import asyncio
import logging
import os
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.models.encode import encode_alone
from medvqa.serve.engines import Engine
from medvqa.serve.errors import ErrorKind, RequestError, ToolError, overloaded
from medvqa.serve.hosts import Hosts
from medvqa.serve.intake import Intake
from medvqa.serve.protocol import Request, completion, read_request, stream

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 2**20
MAX_BODIES_BYTES = 4 * MAX_BODY_BYTES  # of all requests that are being read or encoded
BODY_TIMEOUT_S = 60.0
MAX_KNOWN_CLIENTS = 1000
ENDPOINT_STATUS = {
    ErrorKind.timeout: 504,
    ErrorKind.endpoint_unreachable: 504,
    ErrorKind.endpoint_error: 502,
}  # of the program behind the server; any other error is about the request


def build_app(service: "ChatService", hosts: Hosts) -> "Starlette":
    """Return the application around a healthy engine, for requests to the given hosts only."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    async def refused(_: "HttpRequest", error: Exception) -> "Response":
        return _error_response(error)

    return Starlette(
        routes=[
            Route("/health", service.health),
            Route("/v1/models", service.models),
            Route("/v1/chat/completions", service.complete, methods=["POST"]),
        ],
        middleware=[Middleware(_HostCheck, hosts=hosts)],
        exception_handlers={HTTPException: refused},
    )


class ChatService:
    """Answers requests with one engine.

    Neither questions nor answers are logged: they are about patients.

    Args:
        engine: Answers.
        intake: Checks questions and pictures.
        name: The model's id.
        is_lenient: Whether settings, system prompts and histories are ignored, not refused.
    """

    def __init__(
        self, engine: Engine, intake: Intake, *, name: str, is_lenient: bool = False
    ) -> None:
        self._engine = engine
        self._intake = intake
        self._name = name
        self._is_lenient = is_lenient
        self._started = int(time.time())
        self._num_body_bytes = 0
        self._clients: set[str] = set()
        # A thread per core: more would only take the core from the thread that answers.
        self._encoders = ThreadPoolExecutor(
            os.cpu_count() or 1, thread_name_prefix="encode", initializer=encode_alone()
        )

    async def health(self, _: "HttpRequest") -> "Response":
        """Return 200 while the engine can answer, else 503."""
        from starlette.responses import JSONResponse

        is_healthy = self._engine.is_healthy
        status = "ok" if is_healthy else "the engine has ended"
        body = {"status": status, "model": self._name}
        return JSONResponse(body, status_code=200 if is_healthy else 503)

    async def models(self, _: "HttpRequest") -> "Response":
        """Return the one model, with its description."""
        from starlette.responses import JSONResponse

        model = {"id": self._name, "object": "model", "created": self._started}
        described = {**model, "owned_by": "medvqa", "medvqa": self._engine.describe()}
        return JSONResponse({"object": "list", "data": [described]})

    async def complete(self, http: "HttpRequest") -> "Response":
        """Answer one question."""
        from starlette.responses import JSONResponse, StreamingResponse

        try:
            async with self._body(http) as data:
                loop = asyncio.get_running_loop()
                request, question = await loop.run_in_executor(self._encoders, self._read, data)
            answer = await self._engine.answer(question)
        except Exception as error:
            return _error_response(error)
        self._log_ignored(http, request.ignored)
        if not request.is_stream:
            return JSONResponse(completion(answer, model=self._name, ignored=request.ignored))
        events = stream(
            answer, model=self._name, has_usage=request.has_usage, ignored=request.ignored
        )
        return StreamingResponse(iter(events), media_type="text/event-stream")

    def _read(self, data: bytes) -> tuple[Request, Any]:
        """Return the request and its question, encoded; off the event loop, for it decodes."""
        request = read_request(
            data, model=self._name, intake=self._intake, is_lenient=self._is_lenient
        )
        return request, self._engine.prepare(request.question)

    @asynccontextmanager
    async def _body(self, http: "HttpRequest") -> AsyncIterator[bytes]:
        """Give the body, read no further than the caps; its bytes count until the block ends."""
        from starlette.requests import ClientDisconnect

        # A web page cannot send this type without asking first, which is refused.
        if http.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise RequestError("content-type must be application/json", "unsupported", status=415)
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in http.stream():
                    body += chunk
                    self._num_body_bytes += len(chunk)
                    self._check_size(len(body))
            yield bytes(body)
        except ClientDisconnect:
            raise RequestError("the client has left", "client_disconnected") from None
        except TimeoutError:
            message = f"the body did not arrive within {BODY_TIMEOUT_S:g} s"
            raise RequestError(message, "timeout", status=408) from None
        finally:
            self._num_body_bytes -= len(body)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > MAX_BODY_BYTES:
            message = f"the body is above {MAX_BODY_BYTES:,} bytes"
            raise RequestError(message, "too_large", status=413)
        if self._num_body_bytes > MAX_BODIES_BYTES:
            raise overloaded("the bodies of other requests fill the server's memory")

    def _log_ignored(self, http: "HttpRequest", ignored: Sequence[str]) -> None:
        """Log once per client that parts of its requests have no effect."""
        client = http.client.host if http.client else "unknown"
        if ignored and client not in self._clients and len(self._clients) < MAX_KNOWN_CLIENTS:
            self._clients.add(client)
            log.warning("client %s: ignored %s", client, ", ".join(ignored)[:300])


class _HostCheck:
    """Refuses requests to another host: a web page's name may have been pointed here."""

    def __init__(self, app: Any, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, or answer 400."""
        app = self._app
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            server = scope.get("server") or ("", None)
            if not self._hosts.allow(host, server_address=server[0]):
                message = f"Host {host!r:.200} is not served here; --allow-host NAME allows it"
                app = _error_response(RequestError(message, "host_not_allowed"))
        await app(scope, receive, send)


def _error_response(error: Exception) -> "Response":
    from starlette.responses import JSONResponse

    refusal = _refusal(error)
    return JSONResponse(refusal.body, status_code=refusal.status)


def _refusal(error: Exception) -> RequestError:
    """Return any error as an error object of OpenAI; an unknown one without its text."""
    from starlette.exceptions import HTTPException

    if isinstance(error, RequestError):
        return error
    if isinstance(error, UserError):
        return RequestError(str(error), "invalid_question", "messages")
    if isinstance(error, ToolError):
        if error.kind in ENDPOINT_STATUS:
            status = ENDPOINT_STATUS[error.kind]
            return RequestError(error.message, error.kind.value, status=status)
        return RequestError(error.message, error.kind.value, "messages")
    if isinstance(error, HTTPException):
        return RequestError(str(error.detail), "not_found", status=error.status_code)
    # Without the error's own text, which may repeat a question.
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s while answering:\n%s", type(error).__name__, where)
    return RequestError("internal error", "internal_error", status=500)
