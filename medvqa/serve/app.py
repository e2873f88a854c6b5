"""The HTTP side: chat completions, models, health; errors are OpenAI's objects, never a page."""

import logging
import time
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.serve.batching import OverloadedError
from medvqa.serve.engines import Engine
from medvqa.serve.errors import ErrorKind, ToolError
from medvqa.serve.intake import Intake
from medvqa.serve.protocol import Request, RequestError, completion, read_request, stream

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

    async def refused(_: fastapi.Request, error: Exception) -> Response:
        refusal = _refusal(error)
        return JSONResponse(refusal.body, status_code=refusal.status)

    for kind in (RequestError, UserError, OverloadedError, ToolError, HTTPException, Exception):
        app.add_exception_handler(kind, refused)

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
        answer = await engine.answer(request.question)
        if not request.is_stream:
            return JSONResponse(completion(answer, model=name, num_prompt_tokens=num_tokens))
        events = stream(
            answer, model=name, num_prompt_tokens=num_tokens, has_usage=request.has_usage
        )
        return StreamingResponse(iter(events), media_type="text/event-stream")

    return app


def _refusal(error: Exception) -> RequestError:
    """Return any error as an error object of OpenAI; an unknown one without its text."""
    from starlette.exceptions import HTTPException

    if isinstance(error, RequestError):
        return error
    if isinstance(error, UserError):
        return RequestError(str(error), "invalid_question", "messages")
    if isinstance(error, OverloadedError):
        return RequestError(str(error), "overloaded", status=503)
    if isinstance(error, ToolError):
        status = 504 if error.kind in TIMEOUTS else 502
        return RequestError(error.message, error.kind.value, status=status)
    if isinstance(error, HTTPException):
        return RequestError(str(error.detail), "not_found", status=error.status_code)
    return RequestError("internal error", "internal_error", status=500)


def _checked(data: bytes, engine: Engine, intake: Intake, name: str) -> tuple[Request, int]:
    """Return the request and the tokens of its prompt; off the event loop, for it decodes."""
    request = read_request(data, model=name, intake=intake)
    return request, engine.check(request.question)


async def _body(http: "fastapi.Request") -> bytes:
    """Return the body, read no further than the cap."""
    # A page in somebody's browser cannot send this type without asking first, which is refused.
    if http.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RequestError("content-type must be application/json", "unsupported", status=415)
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(
                f"the body is above {MAX_BODY_BYTES:,} bytes", "too_large", status=413
            )
    return bytes(body)
