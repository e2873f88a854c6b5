"""Web servers of the tests, on loopback addresses; each counts the connections that reach it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Respond = Callable[[BaseHTTPRequestHandler], None]


class Counting(ThreadingHTTPServer):
    """Counts connections before a byte of them is read."""

    daemon_threads = True
    num_connections = 0
    requests: list[tuple[str, dict[str, str], bytes]]

    def get_request(self):
        self.num_connections += 1
        return super().get_request()

    def handle_error(self, request, client_address):
        """Clients that refuse what they get hang up; that is no error here."""

    @property
    def port(self) -> int:
        return self.server_address[1]


@contextmanager
def served(respond: Respond) -> Iterator[Counting]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer()

        def do_POST(self):
            self.answer()

        def answer(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            self.server.requests.append((self.path, dict(self.headers), body))
            respond(self)

        def log_message(self, *_):
            pass

    server = Counting(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def body(data: bytes, *, status: int = 200) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return respond


def redirect(location: str) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return respond
