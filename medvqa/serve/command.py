"""`medvqa serve RUN`: an OpenAI-compatible server on this machine."""

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError
from medvqa.config.model import Device
from medvqa.models.trained import Trained, load_trained, read_trained
from medvqa.serve.answering import Answerer
from medvqa.serve.app import build_app
from medvqa.serve.engines import LOOPBACK, Engine, OwnEngine, start_transformers, start_vllm
from medvqa.serve.errors import require
from medvqa.serve.intake import Intake, Limits

log = logging.getLogger(__name__)

BACKLOG = 128


def main_serve(argv: Sequence[str]) -> None:
    """Answer questions over HTTP as OpenAI's chat completions; for research, not for diagnosis."""
    parser = argparse.ArgumentParser("medvqa serve", description=main_serve.__doc__)
    parser.add_argument("run", type=Path, help="a finished run, or an export of one")
    parser.add_argument("--host", default=LOOPBACK, help="anybody who reaches it may ask")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--engine", choices=["own", "vllm", "transformers"], default="own")
    parser.add_argument("--base", metavar="DIR", help="the base's own weights, in place of the hub")
    parser.add_argument("--device", choices=[d.value for d in Device], default="auto")
    options = parser.parse_args(argv)
    require("fastapi", "uvicorn", "httpx")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    trained = read_trained(options.run)
    # Before the model: a port that is taken is said at once.
    with listening(options.host, options.port) as listener:
        if options.host not in (LOOPBACK, "localhost", "::1"):
            log.warning("%s: whoever reaches this address may ask; there is no key", options.host)
        engine = _engine(trained, options)
        try:
            serve(engine, trained.name, listener)
        finally:
            engine.close()


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


def serve(engine: Engine, name: str, listener: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT; what is in flight then is finished, a second one ends it."""
    import uvicorn

    class Server(uvicorn.Server):
        """Says when it is ready, and returns after a signal in place of dying of it."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            sys.stdout.write(f"serving {name} on http://{shown}:{port}/v1\n")
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

    # Only pictures inside the request: no file and no address of this machine's network.
    intake = Intake([], Limits())
    config = uvicorn.Config(
        build_app(engine, intake, name=name),
        access_log=False,
        log_config=None,
        log_level="warning",
        lifespan="off",
    )
    Server(config).run(sockets=[listener])
    log.info("stopped; all that was asked has been answered")
