"""Bytes of a remote image, only from allowed hosts and only from public addresses.

Each hop of a redirect is checked anew. The name is resolved once a connection, all its addresses
are checked, and the connection goes to a checked address: a second look-up, which a hostile name
server could answer with a private address, does not happen. No proxy, no cookie, no retry.
"""

import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from medvqa.serve.references import shown
from medvqa.serve.tool_error import ErrorKind, ToolError

PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 3
MAX_URL_CHARS = 4096
HEADERS: tuple[tuple[bytes | str, bytes | str], ...] = (
    ("Accept", "image/*"),
    ("Accept-Encoding", "identity"),  # a compressed body could be a bomb
    ("Connection", "close"),
)


@dataclass(frozen=True)
class _Place:
    """Where one request goes."""

    scheme: str
    host: str
    port: int
    target: str


class Fetcher:
    """Fetches from allowed hosts.

    Args:
        allowed_hosts: `host` for the scheme's own port, or `host:port`; exact, no wildcard.
        max_bytes: Larger bodies are refused, at the header where it tells.
        timeout_s: For the whole fetch, redirects included, but for the name's resolution.
        trusted_addresses: Taken although they are not public. For tests: no config sets it.
    """

    def __init__(
        self,
        allowed_hosts: Sequence[str],
        *,
        max_bytes: int,
        timeout_s: float,
        trusted_addresses: frozenset[str] = frozenset(),
    ) -> None:
        self._allowed = {host.strip().lower() for host in allowed_hosts}
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._trusted = trusted_addresses

    def fetch(self, url: str) -> bytes:
        """Return the body.

        Raises:
            ToolError: If the URL, one of its redirects, an address or the size is not allowed, or
                the server cannot be reached in time.
        """
        import httpcore

        name = shown(url)
        deadline = time.monotonic() + self._timeout_s
        try:
            for _ in range(1 + MAX_REDIRECTS):
                body, location = self._hop(self._checked(url, name), name, deadline)
                if location is None:
                    return body
                url = urljoin(url, location)
        except httpcore.TimeoutException:
            raise ToolError(
                ErrorKind.timeout, f"image {name} did not arrive in {self._timeout_s:g} s"
            ) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
            raise ToolError(
                ErrorKind.image_missing,
                f"image {name}: its server cannot be reached ({type(error).__name__})",
            ) from None
        except ValueError:  # a redirect to what no parser reads, or a length of ten thousand digits
            raise _refused(name, "is answered with what is no valid response") from None
        raise _refused(name, f"is redirected more than {MAX_REDIRECTS} times")

    def _checked(self, url: str, name: str) -> _Place:
        """Return what to ask whom; no name is resolved here."""
        if len(url) > MAX_URL_CHARS or not re.fullmatch(r"[!-\[\]-~]+", url):
            raise _refused(name, "is too long or holds a character that must be percent-encoded")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _refused(name, "is no valid URL") from None
        host = (parts.hostname or "").rstrip(".")
        if parts.scheme not in PORTS or not host:
            raise _refused(name, "leads to something else than http:// or https://")
        if "@" in parts.netloc:
            raise _refused(name, "holds a user or password")
        allowed = {f"{host}:{port}"} if port else {host, f"{host}:{PORTS[parts.scheme]}"}
        if port == PORTS[parts.scheme]:
            allowed.add(host)
        if not allowed & self._allowed:
            raise _refused(name, "leads to a host that is not in the config's allowed_hosts")
        target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        return _Place(parts.scheme, host, port or PORTS[parts.scheme], target)

    def _hop(self, place: _Place, name: str, deadline: float) -> tuple[bytes, str | None]:
        """Return the body, or where the server redirects to."""
        import httpcore

        from medvqa.serve.connection import CheckingBackend

        url = httpcore.URL(
            scheme=place.scheme, host=place.host, port=place.port, target=place.target
        )
        backend = CheckingBackend(name, deadline, self._trusted)
        with (
            httpcore.ConnectionPool(network_backend=backend) as pool,
            pool.stream("GET", url, headers=HEADERS) as response,
        ):
            fields = {key.lower(): value for key, value in response.headers}
            if response.status in REDIRECTS and b"location" in fields:
                return b"", fields[b"location"].decode("latin-1")
            if response.status != 200:
                raise ToolError(
                    ErrorKind.image_missing, f"image {name}: its server says {response.status}"
                )
            length = fields.get(b"content-length", b"0")
            self._check_size(int(length) if length.isdigit() else 0, name)
            body = bytearray()
            for chunk in response.iter_stream():
                body += chunk
                self._check_size(len(body), name)
            return bytes(body), None

    def _check_size(self, num_bytes: int, name: str) -> None:
        if num_bytes > self._max_bytes:
            raise ToolError(
                ErrorKind.too_large,
                f"image {name} has more than {self._max_bytes:,} bytes, the limit",
            )


def _refused(name: str, problem: str) -> ToolError:
    return ToolError(ErrorKind.image_not_allowed, f"image {name} {problem}")
