"""Remote images: off by default, allowed hosts only, and never an address that is not public."""

import contextlib
import logging
import socket
import ssl
import subprocess
import sys

import pytest

from medvqa.serve.connection import is_public
from medvqa.serve.intake import Intake, Limits
from medvqa.serve.remote import Fetcher
from medvqa.serve.tool_config import ToolConfig, read_tool_config
from medvqa.serve.tool_error import ErrorKind, ToolError
from tests.loopback import body, redirect, served, trickle
from tests.unit.serve.test_intake import PNG

TRUSTED = frozenset({"127.0.0.1"})
LIMITS = Limits(max_image_bytes=2000)


def fetcher(*hosts, trusted=TRUSTED, timeout_s=10.0):
    return Fetcher(hosts, max_bytes=2000, timeout_s=timeout_s, trusted_addresses=trusted)


def refusal(action):
    with pytest.raises(ToolError) as refused:
        action()
    return refused.value


def test_remote_images_are_off_by_default_and_no_connection_is_opened():
    with served(body(PNG)) as server:
        intake = Intake([], LIMITS, None)
        url = f"http://127.0.0.1:{server.port}/a.png"
        error = refusal(lambda: intake.accept("what?", [url]))
        assert error.kind is ErrorKind.image_not_allowed
        assert "no allowed_hosts" in str(error)
        assert server.num_connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST.", "2130706433", "0x7f.1"])
def test_an_allowed_host_with_a_loopback_address_gets_no_connection(host):
    with served(body(PNG)) as server:
        allowed = host.lower().rstrip(".")
        strict = fetcher(f"{allowed}:{server.port}", trusted=frozenset())
        error = refusal(lambda: strict.fetch(f"http://{host}:{server.port}/a.png"))
        assert error.kind is ErrorKind.image_not_allowed
        assert "private, local or reserved address" in str(error)
        assert server.num_connections == 0


def test_no_config_can_allow_a_private_address():
    assert "trusted" not in " ".join(vars(ToolConfig(run="x")))
    config = read_tool_config(None, ["run=x", "allowed_hosts=[10.0.0.1]"])
    strict = Fetcher(config.allowed_hosts, max_bytes=10, timeout_s=1)
    assert refusal(lambda: strict.fetch("http://10.0.0.1/")).kind is ErrorKind.image_not_allowed


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1"),
        *("198.18.0.1", "192.88.99.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1"),
        *("fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::", "2001:db8::1"),
    ],
)
def test_private_local_mapped_and_reserved_addresses_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"])
def test_ordinary_addresses_are_public(address):
    assert is_public(address)


def test_a_name_with_one_private_address_among_public_ones_is_refused(monkeypatch):
    answers = [(2, 1, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)  # a hostile name server
    error = refusal(lambda: fetcher("example.org").fetch("http://example.org/a.png"))
    assert "private, local or reserved" in str(error)


def test_an_allowed_host_is_fetched_and_its_name_resolved_once():
    looked_up, connected = [], []
    events = {"socket.getaddrinfo": looked_up, "socket.connect": connected}
    is_on = True

    def watch(event, arguments):
        if is_on and event in events:
            events[event].append(arguments)

    sys.addaudithook(watch)  # cannot be taken away, only told to do nothing
    with served(body(PNG)) as server:
        remote = fetcher(f"localhost:{server.port}", trusted=TRUSTED | {"::1"})
        assert remote.fetch(f"http://localhost:{server.port}/a.png?x=1") == PNG
        assert server.requests[0][0] == "/a.png?x=1"
        assert server.requests[0][1]["Host"] == f"localhost:{server.port}"
    is_on = False
    assert [arguments[0] for arguments in looked_up].count("localhost") == 1
    assert {address[0] for _, address in connected} <= TRUSTED | {"::1"}


def test_a_remote_image_is_decoded_and_anything_else_is_unreadable():
    with served(body(PNG)) as good, served(body(b"<html>")) as bad:
        hosts = (f"127.0.0.1:{good.port}", f"127.0.0.1:{bad.port}")
        intake = Intake([], LIMITS, fetcher(*hosts))
        assert len(intake.accept("what?", [f"http://{hosts[0]}/a.png"]).images) == 1
        error = refusal(lambda: intake.accept("what?", [f"http://{hosts[1]}/a.png"]))
        assert error.kind is ErrorKind.image_unreadable


def test_a_redirect_to_a_private_address_is_not_followed_even_if_its_host_is_allowed():
    with served(body(PNG), address="127.0.0.2") as private:
        places = [f"127.0.0.2:{private.port}", "169.254.169.254", "10.0.0.1"]
        for place in places:
            with served(redirect(f"http://{place}/latest/meta-data")) as public:
                remote = fetcher(f"127.0.0.1:{public.port}", *places)
                error = refusal(lambda f=remote, s=public: f.fetch(f"http://127.0.0.1:{s.port}/"))
                assert error.kind is ErrorKind.image_not_allowed
                assert "private, local or reserved" in str(error)
                assert public.num_connections == 1
        assert private.num_connections == 0


@pytest.mark.parametrize(
    "location",
    [
        "http://example.org/a.png",
        "//example.org/a.png",
        "http://127.0.0.1:1/a.png",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "http://user:password@127.0.0.1/",
        "http://[::1",
        "http://\u00e4/",
    ],
)
def test_a_redirect_to_another_host_or_scheme_is_not_followed(location):
    with served(redirect(location)) as server:
        remote = fetcher(f"127.0.0.1:{server.port}")
        error = refusal(lambda: remote.fetch(f"http://127.0.0.1:{server.port}/"))
        assert error.kind is ErrorKind.image_not_allowed
        assert server.num_connections == 1


def test_a_redirect_within_the_host_is_followed_but_not_for_ever():
    def once(handler):
        respond = body(PNG) if handler.path == "/real.png" else redirect("/real.png")
        respond(handler)

    with served(once) as short, served(redirect("/again")) as endless:
        remote = fetcher(f"127.0.0.1:{short.port}", f"127.0.0.1:{endless.port}")
        assert remote.fetch(f"http://127.0.0.1:{short.port}/") == PNG
        error = refusal(lambda: remote.fetch(f"http://127.0.0.1:{endless.port}/"))
        assert "redirected more than 3 times" in str(error)
        assert endless.num_connections == 4


@pytest.mark.parametrize("has_length", [True, False])
def test_a_body_above_the_cap_is_refused(has_length):
    with served(body(bytes(500_000), length=has_length)) as server:
        remote = fetcher(f"127.0.0.1:{server.port}")
        error = refusal(lambda: remote.fetch(f"http://127.0.0.1:{server.port}/"))
        assert error.kind is ErrorKind.too_large


def test_a_server_that_trickles_bytes_runs_into_the_deadline():
    with served(trickle) as server:
        remote = fetcher(f"127.0.0.1:{server.port}", timeout_s=0.4)
        error = refusal(lambda: remote.fetch(f"http://127.0.0.1:{server.port}/"))
        assert error.kind is ErrorKind.timeout


def test_a_server_that_is_away_or_says_no_is_a_missing_image():
    with served(body(b"", status=403)) as server:
        port = server.port
        error = refusal(lambda: fetcher(f"127.0.0.1:{port}").fetch(f"http://127.0.0.1:{port}/"))
        assert (error.kind, "says 403" in str(error)) == (ErrorKind.image_missing, True)
    error = refusal(lambda: fetcher(f"127.0.0.1:{port}").fetch(f"http://127.0.0.1:{port}/"))
    assert error.kind is ErrorKind.image_missing


@pytest.mark.parametrize(
    "url",
    [
        "http://user:password@{host}/a.png",
        "http://{host}@example.org/a.png",
        "http://example.org#@{host}/a.png",
        "http://example.org/?{host}",
        "http://{host}.example.org/",
        "http://example.org\\@{host}/",
        "http://{host}:1/",
        "http:///a.png",
        "http://127.0.0.1 .example.org/",
        "http://127.0.0.1:99999/",
        "http://[::1/",
        "http://\u2460\u2461/",
        "http://127.0.0.1/" + "a" * 5000,
    ],
    ids=lambda url: ascii(url)[:30],
)
def test_a_url_that_only_looks_like_an_allowed_host_gets_no_connection(url):
    with served(body(PNG)) as server:
        intake = Intake([], LIMITS, fetcher(f"127.0.0.1:{server.port}"))
        text = url.format(host=f"127.0.0.1:{server.port}")
        error = refusal(lambda: intake.accept("what?", [text]))
        assert error.kind is ErrorKind.image_not_allowed
        assert server.num_connections == 0


def test_a_certificate_that_nobody_signed_is_refused(tmp_path):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout key.pem"
    subprocess.run(
        [*command.split(), "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with served(body(PNG), context=context) as server:
        remote = fetcher(f"127.0.0.1:{server.port}")
        error = refusal(lambda: remote.fetch(f"https://127.0.0.1:{server.port}/"))
        assert error.kind is ErrorKind.image_missing
        assert server.requests == []


def test_no_secret_of_a_url_is_in_a_message_or_a_log_at_any_level(caplog):
    caplog.set_level(logging.DEBUG)
    texts = []
    with served(body(PNG)) as good, served(body(b"", status=404)) as gone:
        hosts = (f"127.0.0.1:{good.port}", f"127.0.0.1:{gone.port}")
        intake = Intake([], LIMITS, fetcher(*hosts))
        for host in (*hosts, "example.org"):
            for url in (
                f"http://{host}/a.png?X-Signature=SECRET&key=SECRET#SECRET",
                f"http://user:SECRET@{host}/a.png",
                f"http://SECRET@{host}/",
                f"ftp://user:SECRET@{host}/a.png",
                f"user:SECRET@{host}/a.png",
                f"http://u:SECRET@[{host}/",
            ):
                with contextlib.suppress(ToolError):
                    intake.accept("what?", [url])
                    texts.append("accepted")
                with pytest.raises(ToolError) as refused:
                    intake.accept("what?", [url, "nowhere.png"])
                texts.append(str(refused.value))
    assert "accepted" in texts
    assert "SECRET" not in "".join(texts) + caplog.text
