"""A small hub: serves a folder as one data set's repository, and remembers what was asked."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    def __init__(self, repository: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository, self.folder = repository, folder
        self.num_bytes_sent: dict[str, int] = {}
        self.lock = threading.Lock()  # each request has its thread

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def entry(self, path: Path) -> dict:
        data = path.read_bytes()
        return {"type": "file", "path": path.name, "size": len(data), "oid": etag(data)}


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *args) -> None:
        pass

    def send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_json(self, value) -> None:
        self.send(json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        names = re.findall(r"[\w.]+\.(?:zip|json)", asked)
        self.send_json([self.server.entry(self.server.folder / name) for name in names])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        repository = self.server.repository
        if path.startswith(f"/api/datasets/{repository}/tree/"):
            files = sorted(p for p in self.server.folder.iterdir() if p.is_file())
            self.send_json([self.server.entry(p) for p in files])
        elif path.startswith(f"/api/datasets/{repository}"):
            self.send_json({"id": repository, "sha": COMMIT, "private": False, "tags": []})
        elif (file := self.server.folder / path.rpartition("/")[2]).is_file():
            self.send_file(file)
        else:
            self.send(b"", 404, X_Error_Code="EntryNotFound")

    def send_file(self, file: Path) -> None:
        data = file.read_bytes()
        headers = {"ETag": f'"{etag(data)}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
        if self.command == "GET":
            sent = self.server.num_bytes_sent
            with self.server.lock:
                sent[file.name] = sent.get(file.name, 0) + len(data)
        self.send(data, 206 if asked else 200, **headers)


@contextmanager
def serving(repository: str, folder: Path) -> Iterator[HubServer]:
    """Serve the folder while the block runs."""
    server = HubServer(repository, folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
