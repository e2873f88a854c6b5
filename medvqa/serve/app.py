"""The HTTP side: chat completions, models, health; errors are OpenAI's objects, never a page."""

import logging
import time
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.serve.batching import OverloadedError
from medvqa.serve.engines import Engine
from medvqa.serve.intake import Intake
from medvqa.serve.protocol import Request, RequestError, completion, read_request, stream
from medvqa.serve.tool_error import ErrorKind, ToolError

if TYPE_CHECKING:
    import fastapi

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 2**20
TIMEOUTS = (ErrorKind.timeout, ErrorKind.endpoint_unreachable)


def build_app(engine: Engine, intake: Intake, *, name: str) -> "fastapi.FastAPI":
    """Return the application around a healthy engine.

    Neither questions nor answers are logged: they are about patients.
    """
    import fastapi
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException

    app = fastapi.FastAPI(title="medvqa", docs_url=None, redoc_url=None, openapi_url=None)
    started = int(time.time())
    model = {"id": name, "object": "model", "created": started, "owned_by": "medvqa"}

    @app.exception_handler(RequestError)
    async def refused(_: fastapi.Request, error: RequestError) -> Response:
        return JSONResponse(error.body, status_code=error.status)

    @app.exception_handler(HTTPException)
    async def unknown(_: fastapi.Request, error: HTTPException) -> Response:
        refusal = RequestError(str(error.detail), code="not_found", status=error.status_code)
        return JSONResponse(refusal.body, status_code=error.status_code)

    @app.exception_handler(Exception)
    async def crashed(_: fastapi.Request, error: Exception) -> Response:
        refusal = RequestError("internal error", code="internal_error", kind="server_error")
        return JSONResponse(refusal.body, status_code=500)

    @app.get("/health")
    async def health() -> Response:
        is_healthy = engine.is_healthy
        status = "ok" if is_healthy else "the engine has ended"
        return JSONResponse(
            {"status": status, "model": name}, status_code=200 if is_healthy else 503
        )

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{**model, "medvqa": engine.describe()}]}

    @app.post("/v1/chat/completions")
    async def complete(http: fastapi.Request) -> Response:
        data = await _body(http)
        request, num_tokens = await run_in_threadpool(_checked, data, engine, intake, name)
        with _refusals():
            answer = await engine.answer(request.question)
        if not request.is_stream:
            return JSONResponse(completion(answer, model=name, num_prompt_tokens=num_tokens))
        events = stream(
            answer, model=name, num_prompt_tokens=num_tokens, has_usage=request.has_usage
        )
        return StreamingResponse(iter(events), media_type="text/event-stream")

    return app


def _checked(data: bytes, engine: Engine, intake: Intake, name: str) -> tuple[Request, int]:
    """Return the request and the tokens of its prompt; off the event loop, for it decodes."""
    request = read_request(data, model=name, intake=intake)
    with _refusals():
        return request, engine.check(request.question)


class _refusals:  # noqa: N801 - reads as a block
    """Turns what an engine says of a question into an error object."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if isinstance(error, UserError):
            raise RequestError(str(error), code="invalid_question", param="messages") from error
        if isinstance(error, OverloadedError):
            raise RequestError(
                str(error), code="overloaded", status=503, kind="server_error"
            ) from error
        if isinstance(error, ToolError):
            status = 504 if error.kind in TIMEOUTS else 502
            raise RequestError(
                error.message, code=error.kind.value, status=status, kind="server_error"
            ) from error


async def _body(http: "fastapi.Request") -> bytes:
    """Return the body, read no further than the cap."""
    # A page in somebody's browser cannot send this type without asking first, which is refused.
    if http.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RequestError("content-type must be application/json", code="unsupported", status=415)
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(
                f"the body is above {MAX_BODY_BYTES:,} bytes", code="too_large", status=413
            )
    return bytes(body)
