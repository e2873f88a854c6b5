"""Host headers: this machine's own names and the allowed ones, nothing that a page invents."""

import pytest

from medvqa.serve.hosts import Hosts


@pytest.mark.parametrize(
    "header",
    [
        *("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]", "[::1]:8000", "localhost."),
        *("gpu7.clinic.example", "GPU7.clinic.example:80", "192.0.2.7:8000"),
    ],
)
def test_own_and_allowed_names_are_answered(header):
    assert Hosts(["gpu7.clinic.example"]).allow(header, server_address="192.0.2.7")


@pytest.mark.parametrize(
    "header",
    [
        *(
            "",
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
        ),
        *("evil.example@localhost", "localhost@evil.example", "localhost/evil", "[::1", "[::1]x"),
        *("localhost:port", "192.0.2.8", "127.0.0.2", "xlocalhost", "local host"),
    ],
)
def test_other_names_are_refused(header):
    assert not Hosts(["gpu7.clinic.example"]).allow(header, server_address="192.0.2.7")


def test_a_name_is_not_allowed_because_the_server_has_it():
    assert not Hosts().allow("evil.example", server_address="evil.example")
