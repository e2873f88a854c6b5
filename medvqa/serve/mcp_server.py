"""`medvqa mcp`: the tool for MCP clients, over stdio or HTTP on 127.0.0.1."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from medvqa.serve.extra import require
from medvqa.serve.references import listed
from medvqa.serve.tool import DESCRIPTION, IMAGES, NAME, QUERY, Specialist, build
from medvqa.serve.tool_config import read_tool_config

if TYPE_CHECKING:
    from fastmcp import FastMCP

HOST = "127.0.0.1"
PORT = 8765


def mcp_server(specialist: Specialist) -> "FastMCP":
    """Return an MCP server with the one tool."""
    from fastmcp import FastMCP
    from pydantic import BeforeValidator, Field

    import medvqa

    server: FastMCP = FastMCP("medvqa", version=medvqa.__version__, mask_error_details=True)

    def ask(
        query: Annotated[str, Field(description=QUERY)],
        images: Annotated[
            list[str] | None, BeforeValidator(listed), Field(description=IMAGES)
        ] = None,
    ) -> str:
        return specialist.great_brain_specialist(query, images)

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
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
