"""Bytes of a remote image, only from allowed hosts and only from public addresses.

Each hop of a redirect is checked anew. The name is resolved once a connection, all its addresses
are checked, and the connection goes to a checked address: a second look-up, which a hostile name
server could answer with a private address, does not happen. No proxy, no cookie, no retry.
"""

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from medvqa.serve.references import shown
from medvqa.serve.tool_error import ErrorKind, ToolError

if TYPE_CHECKING:
    import httpcore

PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 3
MAX_URL_CHARS = 4096
# IPv6's ordinary addresses; outside are loopback, local, mapped IPv4 and translated IPv4.
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# What Python does not know or carries an IPv4 address: Teredo, 6to4 and its relays, documentation.
SPECIAL = tuple(
    map(ipaddress.ip_network, ("192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20"))
)


def is_public(address: str) -> bool:
    """Return whether it is an ordinary address of the internet.

    Not: private, shared, loopback, link-local, multicast, reserved, documentation, unspecified,
    or an IPv6 address that stands for an IPv4 one.
    """
    ip = ipaddress.ip_address(address)
    if ip.version == 6 and ip not in GLOBAL_UNICAST:
        return False
    is_special = ip.is_private or ip.is_reserved or ip.is_multicast or not ip.is_global
    return not is_special and not any(ip in network for network in SPECIAL)


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
            raise _refused(name, "leads to a host that is not in allowed_hosts of the tool's config")
        target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        return _Place(parts.scheme, host, port or PORTS[parts.scheme], target)

    def _hop(self, place: _Place, name: str, deadline: float) -> tuple[bytes, str | None]:
        """Return the body, or where the server redirects to."""
        import httpcore

        url = httpcore.URL(
            scheme=place.scheme, host=place.host, port=place.port, target=place.target
        )
        headers = {
            "Host": place.host if place.port == PORTS[place.scheme] else f"{place.host}:{place.port}",
            "Accept": "image/*",
            "Accept-Encoding": "identity",  # a compressed body could be a bomb
            "Connection": "close",
        }
        backend = _checking_backend(name, deadline, self._trusted)
        with (
            httpcore.ConnectionPool(network_backend=backend) as pool,
            pool.stream("GET", url, headers=headers) as response,
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
            with closing(response.iter_stream()) as chunks:
                for chunk in chunks:
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


def _checked_address(host: str, port: int, name: str, trusted: frozenset[str]) -> str:
    """Resolve; refuse the name if any of its addresses is not public."""
    import httpcore

    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(str(error)) from error
    addresses = [str(entry[4][0]) for entry in found]
    if not all(address in trusted or is_public(address) for address in addresses):
        raise _refused(name, "leads to a private, local or reserved address")
    return addresses[0]


def _checking_backend(
    name: str, deadline: float, trusted: frozenset[str]
) -> "httpcore.NetworkBackend":
    """Return what opens httpcore's connections: to checked addresses, until the deadline."""
    import httpcore

    def remaining() -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout
        return left

    class Stream(httpcore.NetworkStream):
        """Each operation gets the time that is left, so that a trickle of bytes ends too."""

        def __init__(self, inner: httpcore.NetworkStream) -> None:
            self._inner = inner

        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            return self._inner.read(max_bytes, remaining())

        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            self._inner.write(buffer, remaining())

        def close(self) -> None:
            self._inner.close()

        def start_tls(
            self,
            ssl_context: ssl.SSLContext,
            server_hostname: str | None = None,
            timeout: float | None = None,
        ) -> httpcore.NetworkStream:
            return Stream(self._inner.start_tls(ssl_context, server_hostname, remaining()))

        def get_extra_info(self, info: str) -> Any:
            return self._inner.get_extra_info(info)

    class Backend(httpcore.NetworkBackend):
        def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Iterable[Any] | None = None,
        ) -> httpcore.NetworkStream:
            address = _checked_address(host, port, name, trusted)
            inner = httpcore.SyncBackend().connect_tcp(
                address, port, remaining(), local_address, socket_options
            )
            return Stream(inner)

    return Backend()
