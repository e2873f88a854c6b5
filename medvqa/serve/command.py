"""`medvqa serve RUN`: an OpenAI-compatible server on this machine."""

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvqa.config.command_line import CommandParser
from medvqa.config.errors import UserError
from medvqa.config.model import Device
from medvqa.models.trained import Trained, load_trained, read_trained
from medvqa.serve.answering import Answerer
from medvqa.serve.app import ChatService, build_app
from medvqa.serve.engines import Engine, OwnEngine, start_transformers, start_vllm
from medvqa.serve.errors import require
from medvqa.serve.hosts import ANY_ADDRESS, LOCAL_HOSTS, LOOPBACK, Hosts
from medvqa.serve.intake import Intake, Limits

if TYPE_CHECKING:
    from starlette.applications import Starlette

log = logging.getLogger(__name__)

BACKLOG = 128
IDLE_S = 30.0
MAX_HEADER_BYTES = 32 * 2**10


def main_serve(argv: Sequence[str]) -> None:
    """Answer questions over HTTP as OpenAI's chat completions; for research, not for diagnosis."""
    options = _parser().parse_args(argv)
    require("starlette", "uvicorn")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("medvqa").setLevel(logging.INFO)

    trained = read_trained(options.run)
    # Before the model is loaded: a port that is taken is an error at once.
    with listening(options.host, options.port) as listener:
        if options.host not in LOCAL_HOSTS:
            log.warning("%s: whoever reaches this address may ask; there is no key", options.host)
        engine = _engine(trained, options)
        # Only pictures inside the request: no file and no address of this machine's network.
        intake = Intake([], Limits())
        service = ChatService(engine, intake, name=trained.name, is_lenient=options.lenient)
        hosts = Hosts({options.host, *options.allow_host} - set(ANY_ADDRESS))
        try:
            serve(build_app(service, hosts), trained.name, listener)
        finally:
            engine.close()


def _parser() -> CommandParser:
    parser = CommandParser(
        main_serve,
        {
            "medvqa serve outputs/RUN": "at http://127.0.0.1:8000/v1",
            "medvqa serve outputs/RUN/export/merged --engine vllm --port 9000": "through vLLM",
        },
    )
    add = parser.group("model")
    add("run", type=Path, help="a finished run, or an export of one")
    add("--engine", choices=["own", "vllm", "transformers"], default="own", help="default own")
    add("--base", metavar="DIR", help="the base's own weights, in place of the hub")
    add("--device", choices=[d.value for d in Device], default="auto", help="default auto")
    add = parser.group("server")
    add("--host", default=LOOPBACK, metavar="ADDRESS",
        help=f"anybody who reaches this address may ask (default {LOOPBACK})")  # fmt: skip
    add("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    add("--allow-host", action="append", default=[], metavar="NAME",
        help="another name that requests may call this host by; may be repeated")  # fmt: skip
    add("--lenient", action="store_true",
        help="ignore settings, system prompts and histories; answer the last question alone"
    )  # fmt: skip
    return parser


def _engine(trained: Trained, options: argparse.Namespace) -> Engine:
    if options.engine == "vllm":
        return start_vllm(trained, base=options.base)
    if options.engine == "transformers":
        return start_transformers(trained)
    loaded = load_trained(trained, device=Device(options.device), base=options.base)
    return OwnEngine(Answerer(trained, loaded))


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a listening socket; clients that come before the model is loaded wait.

    Raises:
        UserError: If the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"cannot listen on {host} port {port}: {reason}; choose another --port"
            ) from error
        yield listener


def serve(app: "Starlette", name: str, listener: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT; what is in flight then is finished, a second one ends it."""
    import uvicorn

    class Server(uvicorn.Server):
        """Says when it is ready, and returns after a signal in place of dying of it."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listener.getsockname()[:2]
            address = f"[{host}]" if ":" in host else host
            sys.stdout.write(f"serving {name} on http://{address}:{port}/v1\n")
            sys.stdout.flush()

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            signals = (signal.SIGINT, signal.SIGTERM)
            before: dict[int, Any] = {s: signal.signal(s, self.handle_exit) for s in signals}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    config = uvicorn.Config(
        app,
        http=idle_closing_protocol(IDLE_S),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=int(IDLE_S),
        backlog=BACKLOG,
        access_log=False,
        log_config=None,
        log_level="warning",
        lifespan="off",
        ws="none",
        server_header=False,
    )
    Server(config).run(sockets=[listener])
    log.info("stopped; all that was asked has been answered")


def idle_closing_protocol(idle_s: float) -> Any:
    """Return uvicorn's protocol with an end for connections that send no whole request.

    uvicorn itself closes a connection only when it is idle after a response.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes a connection that has had no request in flight for a while."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(idle_s, self._close_if_idle, None)

        def _close_if_idle(self, idle_since_cycle: Any) -> None:
            if self.transport.is_closing():
                return
            cycle = self.cycle
            is_idle = cycle is None or cycle.response_complete
            if is_idle and cycle is idle_since_cycle:
                self.transport.close()
            else:
                self.loop.call_later(idle_s, self._close_if_idle, cycle)

    return Protocol
