"""Connections of the server: idle ones are closed, requests in flight are not."""

import asyncio
import socket
import threading

import pytest
import uvicorn

from medvqa.config.errors import UserError
from medvqa.serve.command import idle_closing_protocol, listening
from medvqa.serve.demo import main_demo

IDLE_S = 0.2
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


async def slow(scope, receive, send):
    await asyncio.sleep(4 * IDLE_S)
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def address():
    with listening("127.0.0.1", 0) as listener:
        protocol = idle_closing_protocol(IDLE_S)
        config = uvicorn.Config(slow, http=protocol, log_config=None, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[:2]
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("beginning", [b"", b"GET", GET])
def test_a_connection_without_a_whole_request_is_closed(address, beginning):
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(beginning)
        assert connection.recv(100) == b""


def test_a_request_that_takes_longer_is_answered_and_then_the_connection_is_closed(address):
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(GET + b"\r\n")
        with connection.makefile("rb") as stream:
            answer = stream.read()  # until the server closes
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"ok")


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_of_the_demo_that_cannot_be_is_refused_before_a_model_is_read(tmp_path, port):
    pytest.importorskip("gradio")
    with pytest.raises(UserError, match=rf"port {port}: .* must be 0-65535"):
        main_demo([str(tmp_path / "no run"), f"--port={port}"])
