"""The tool for agents: a LangChain tool, and the MCP server of `medvqa mcp`."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from medvqa.serve.errors import ErrorKind, ToolError, require
from medvqa.serve.reference import listed
from medvqa.serve.tool import DESCRIPTION, IMAGES, NAME, QUERY, Specialist, build
from medvqa.serve.tool_config import read_tool_config

if TYPE_CHECKING:
    from fastmcp import FastMCP
    from langchain_core.tools import StructuredTool

HOST = "127.0.0.1"
PORT = 8765


def _image_list() -> Any:
    """Return the type of the argument `images`; agents send one string, or nulls, as well."""
    from pydantic import BeforeValidator, Field

    return Annotated[list[str] | None, BeforeValidator(listed), Field(description=IMAGES)]


def langchain_tool(specialist: Specialist) -> "StructuredTool":
    """Return the tool for LangChain and LangGraph; wrong arguments come back as text too."""
    from langchain_core.tools import StructuredTool
    from pydantic import Field, create_model

    query = Annotated[str, Field(description=QUERY)]
    arguments = create_model("Arguments", query=(query, ...), images=(_image_list(), None))
    return StructuredTool.from_function(
        specialist.great_brain_specialist,
        name=NAME,
        description=DESCRIPTION,
        args_schema=arguments,
        handle_validation_error=_invalid,
    )


def _invalid(error: Any) -> str:
    # Without the values, which may be secrets or megabytes.
    names = sorted({str(name) for problem in error.errors() for name in problem["loc"][:1]})
    message = f"check {', '.join(names)}: query is a string, images a list of strings"
    return str(ToolError(ErrorKind.invalid_arguments, message))


def mcp_server(specialist: Specialist) -> "FastMCP":
    """Return an MCP server with the one tool."""
    from fastmcp import FastMCP
    from pydantic import Field

    import medvqa

    server: FastMCP = FastMCP("medvqa", version=medvqa.__version__, mask_error_details=True)

    def ask(query: Annotated[str, Field(description=QUERY)], images: Any = None) -> str:
        return specialist.great_brain_specialist(query, images)

    ask.__annotations__["images"] = _image_list()
    server.tool(ask, name=NAME, description=DESCRIPTION)
    return server


def main_mcp(argv: Sequence[str]) -> None:
    """Serve the tool to MCP clients, over stdio unless --http is given."""
    parser = argparse.ArgumentParser("medvqa mcp", description=main_mcp.__doc__)
    parser.add_argument("--config", type=Path, help="the tool's YAML file; see docs/tool.md")
    parser.add_argument("--http", action="store_true", help=f"at http://{HOST}:PORT/mcp")
    parser.add_argument("--port", type=int, default=PORT, help=f"for --http; {PORT} if not given")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example run=outputs/RUN"
    )
    options = parser.parse_args(argv)
    require("fastmcp", "httpx")
    config = read_tool_config(options.config, options.overrides)
    with stdout_to_stderr():
        server = mcp_server(build(config))
    if options.http:
        server.run(
            transport="http",
            host=HOST,
            port=options.port,
            show_banner=False,
            # Else a web page could reach it through a name that it lets point to 127.0.0.1.
            host_origin_protection=True,
        )
    else:
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
