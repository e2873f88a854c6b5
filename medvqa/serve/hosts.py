"""Hosts that a server answers for: against DNS rebinding."""

import ipaddress
import re
from collections.abc import Iterable

LOOPBACK = "127.0.0.1"
LOCAL_HOSTS = ("localhost", LOOPBACK, "::1")
ANY_ADDRESS = ("0.0.0.0", "::")
HOST_HEADER = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(?::\d{1,5})?")


class Hosts:
    """The values of the Host header that are answered.

    A web page can point a name of its own to 127.0.0.1 and then send requests here under that
    name. So names must be listed; the address that a request came to is allowed by itself.

    Args:
        names: Names and addresses besides this machine's own.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = {name.lower().strip("[]") for name in (*LOCAL_HOSTS, *names)}

    def allow(self, header: str, *, server_address: str = "") -> bool:
        """Return whether a request with this Host header is answered.

        Args:
            header: For example `localhost:8000` or `[::1]:8000`.
            server_address: The address of this machine that the connection came to.
        """
        match = HOST_HEADER.fullmatch(header.lower())
        if match is None:
            return False
        host = match[1].strip("[]").rstrip(".")
        return host in self._names or (host == server_address and _is_address(host))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
