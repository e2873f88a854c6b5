"""The tool for agents: a LangChain tool, and the MCP server of `medvqa mcp`."""

import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from medvqa.config.command_line import CommandParser
from medvqa.serve.errors import ErrorKind, ToolError, require
from medvqa.serve.hosts import LOOPBACK
from medvqa.serve.reference import listed
from medvqa.serve.tool import DESCRIPTION, IMAGES, NAME, QUERY, Specialist, build
from medvqa.serve.tool_config import read_tool_config

if TYPE_CHECKING:
    from fastmcp import FastMCP
    from langchain_core.tools import StructuredTool
    from pydantic import BaseModel

PORT = 8765
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def langchain_tool(specialist: Specialist) -> "StructuredTool":
    """Return the tool for LangChain and LangGraph; wrong arguments come back as text too."""
    from langchain_core.tools import StructuredTool

    return StructuredTool.from_function(
        specialist.great_brain_specialist,
        name=NAME,
        description=DESCRIPTION,
        args_schema=_arguments(),
        handle_validation_error=_refusal,
    )


def _arguments() -> "type[BaseModel]":
    from pydantic import BeforeValidator, ConfigDict, Field, create_model

    query = Annotated[str, Field(description=QUERY)]
    # Agents send one string, or nulls among strings, as well.
    images = Annotated[list[str] | None, BeforeValidator(listed), Field(description=IMAGES)]
    strict = ConfigDict(extra="forbid")
    return create_model("Arguments", __config__=strict, query=(query, ...), images=(images, None))


def _refusal(error: Any) -> str:
    """Return which arguments are wrong, without their values: secrets, or megabytes."""
    # pydantic leaves out a name that is no valid text.
    places = [problem["loc"] or ("arguments",) for problem in error.errors()]
    names = {ascii(place[0])[1:-1][:40] for place in places}
    message = f"check {', '.join(sorted(names))}: query is a string, images a list of strings"
    return str(ToolError(ErrorKind.invalid_arguments, message))


def mcp_server(specialist: Specialist) -> "FastMCP":
    """Return an MCP server with the one tool; wrong arguments come back as text too."""
    from fastmcp import FastMCP
    from fastmcp.tools import Tool, ToolResult
    from pydantic import ValidationError
    from starlette.concurrency import run_in_threadpool

    import medvqa

    arguments_model: Any = _arguments()

    class SpecialistTool(Tool):
        """The tool; it checks its arguments itself, so that an agent reads each mistake."""

        async def run(self, arguments: dict[str, Any]) -> ToolResult:
            try:
                checked = arguments_model.model_validate(arguments)
            except ValidationError as error:
                return ToolResult(_refusal(error))
            answer = specialist.great_brain_specialist
            return ToolResult(await run_in_threadpool(answer, checked.query, checked.images))

    server: FastMCP = FastMCP("medvqa", version=medvqa.__version__, mask_error_details=True)
    parameters = arguments_model.model_json_schema()
    server.add_tool(SpecialistTool(name=NAME, description=DESCRIPTION, parameters=parameters))
    return server


def _parser() -> CommandParser:
    parser = CommandParser(
        main_mcp,
        {
            "medvqa mcp run=outputs/RUN 'allowed_roots=[/data/images]'": "over stdio",
            "medvqa mcp --config tool.yaml --http --port 8765": f"at http://{LOOPBACK}:8765/mcp",
        },
    )
    add = parser.group("what answers")
    add("overrides", nargs="*", metavar="key=value", help="settings, for example run=outputs/RUN")
    add("--config", type=Path, metavar="FILE", help="the same settings as YAML; see docs/tool.md")
    add = parser.group("how clients reach the tool")
    add("--http", action="store_true", help=f"at http://{LOOPBACK}:PORT/mcp")
    add("--port", type=int, default=PORT, help=f"for --http (default {PORT})")
    return parser


def main_mcp(argv: Sequence[str]) -> None:
    """Serve the tool to MCP clients, over stdio unless --http is given."""
    options = _parser().parse_args(argv)
    require("fastmcp")
    config = read_tool_config(options.config, options.overrides)
    with stdout_to_stderr():
        server = mcp_server(build(config))
    if options.http:
        server.run(
            transport="http",
            host=LOOPBACK,
            port=options.port,
            show_banner=False,
            # Else a web page could reach it through a name that it lets point to 127.0.0.1.
            host_origin_protection=True,
        )
    else:
        with valid_stdin():
            server.run(transport="stdio", show_banner=False)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what libraries print to stderr: stdout belongs to the protocol."""
    sys.stdout.flush()
    protocol = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(protocol, 1)
        os.close(protocol)


@contextmanager
def valid_stdin() -> Iterator[None]:
    """Give the protocol a standard input without halves of surrogate pairs.

    The protocol's parser drops a line that holds one, and the client would wait for ever. As null
    characters they reach the tool, which refuses them by name.
    """
    wire = os.fdopen(os.dup(0), "rb")
    read_end, write_end = os.pipe()

    def pump() -> None:
        with os.fdopen(write_end, "wb") as cleaned, suppress(OSError):
            for line in wire:
                cleaned.write(without_half_surrogates(line))
                cleaned.flush()

    threading.Thread(target=pump, name="stdin", daemon=True).start()
    original = sys.stdin
    sys.stdin = os.fdopen(read_end, encoding="utf-8")
    try:
        yield
    finally:
        sys.stdin = original


def without_half_surrogates(line: bytes) -> bytes:
    """Return the JSON text with null characters in place of halves of surrogate pairs."""
    if not SURROGATE.search(line):
        return line
    try:
        text = json.dumps(json.loads(line), ensure_ascii=False)
    except (ValueError, RecursionError):  # no JSON: the protocol's to refuse
        return line
    return re.sub("[\ud800-\udfff]", r"\\u0000", text).encode() + b"\n"
