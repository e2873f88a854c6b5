"""Connections to checked addresses only, with one deadline; imported where one is needed."""

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import httpcore

from medvqa.serve.tool_error import ErrorKind, ToolError

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


def checked_addresses(host: str, port: int, name: str, trusted: frozenset[str]) -> list[str]:
    """Resolve the host; refuse it if any of its addresses is not public.

    Raises:
        ToolError: Naming the image, which is `name`.
        httpcore.ConnectError: If the host has no address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(str(error)) from error
    addresses = [str(entry[4][0]) for entry in found]
    if not all(address in trusted or is_public(address) for address in addresses):
        raise ToolError(
            ErrorKind.image_not_allowed,
            f"image {name} leads to a private, local or reserved address",
        )
    return list(dict.fromkeys(addresses))


class DeadlineStream(httpcore.NetworkStream):
    """Gives each operation the time that is left, so that a trickle of bytes ends too."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read, in the time that is left."""
        return self._inner.read(max_bytes, remaining(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write, in the time that is left."""
        self._inner.write(buffer, remaining(self._deadline))

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Encrypt; the certificate is checked against the host's name, not its address."""
        inner = self._inner.start_tls(ssl_context, server_hostname, remaining(self._deadline))
        return DeadlineStream(inner, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks of the connection."""
        return self._inner.get_extra_info(info)


class CheckingBackend(httpcore.NetworkBackend):
    """Opens httpcore's connections.

    Args:
        name: What messages call the image.
        deadline: By the monotonic clock.
        trusted: Addresses that are taken although they are not public.
    """

    def __init__(self, name: str, deadline: float, trusted: frozenset[str]) -> None:
        self._name = name
        self._deadline = deadline
        self._trusted = trusted

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve once, check, and connect to the first checked address that answers."""
        *others, last = checked_addresses(host, port, self._name, self._trusted)
        connect = httpcore.SyncBackend().connect_tcp
        for address in others:
            with suppress(httpcore.ConnectError):
                timeout = remaining(self._deadline)
                inner = connect(address, port, timeout, local_address, socket_options)
                return DeadlineStream(inner, self._deadline)
        inner = connect(last, port, remaining(self._deadline), local_address, socket_options)
        return DeadlineStream(inner, self._deadline)


def remaining(deadline: float) -> float:
    """Return the seconds until the deadline; raise httpcore's time-out behind it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left
