"""References in the heads of answers: an engine's own become paths of llmux's, its neighbours' are not passed on."""

import socket
import ssl

import pytest

from llmux.access import Remote
from llmux.gateway.http.engine_addresses import AddressExposed, EngineAddress, RemoteAddress

TCP = EngineAddress(b"127.0.0.1:8001", 8001)
UNIX = EngineAddress(b"localhost", None)
PREFIX = b"/upstream/m"

OWN = [
    b"http://127.0.0.1:8001",
    b"http://localhost:8001",
    b"HTTP://LocalHost:8001",
    b"http://[::1]:8001",
    b"http://[0:0:0:0:0:0:0:1]:8001",
    b"http://[::ffff:127.0.0.1]:8001",
    b"http://0.0.0.0:8001",
    b"http://[::]:8001",
    b"http://127.1:8001",
    b"http://127.9.9.9:8001",
    b"http://2130706433:8001",
    b"http://0x7f000001:8001",
    b"http://127%2e0.0.1:8001",
    b"http://127\xe3\x80\x820.0.1:8001",
    b"http://localhost.:8001",
    b"http://a.localhost:8001",
    b"http://user:secret@127.0.0.1:8001",
    b"http://127.0.0.1:08001",
    b"https://127.0.0.1:8001",
    b"//127.0.0.1:8001",
    b"http:\\\\127.0.0.1:8001",
    b"http:///127.0.0.1:8001",
    b"http:127.0.0.1:8001",
    b"ht\ttp://127.0.0.1:8001",
    b"http://127.0.0.1",
    b"http://localhost:80",
    b"http://10.0.0.7:8001",
    f"http://{socket.gethostname()}:8001".encode(),
]


@pytest.mark.parametrize("own", OWN)
def test_every_spelling_of_an_engines_own_address_becomes_a_path(own: bytes) -> None:
    assert TCP.hide(b"Location: " + own + b"/v1/x?a=b#c\r\n", b"") == b"Location: /v1/x?a=b#c\r\n"
    assert TCP.hide(b"location:" + own + b"\r\n", PREFIX) == b"location:/upstream/m/\r\n"
    assert TCP.hide(b"location:" + own + b"?q\r\n", b"") == b"location:/?q\r\n"


@pytest.mark.parametrize("own", [b"http://localhost", b"//127.0.0.1", b"https://[::1]:80"])
def test_an_engine_on_a_unix_socket_has_the_address_of_any_server_of_this_machine(own: bytes) -> None:
    assert UNIX.hide(b"location: " + own + b"/x\r\n", PREFIX) == b"location: /upstream/m/x\r\n"


@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        (b"Content-Location: http://127.0.0.1:8001/a", b"Content-Location: /upstream/m/a"),
        (
            b'Link: <http://127.0.0.1:8001/a>; rel=next, </b>; rel=prev, <https://x/c>; anchor="http://localhost:8001/"',
            b'Link: </upstream/m/a>; rel=next, </upstream/m/b>; rel=prev, <https://x/c>; anchor="/upstream/m/"',
        ),
        (b"Refresh: 5; url=http://127.0.0.1:8001/a", b"Refresh: 5; url=/upstream/m/a"),
        (b"refresh: 0;URL='http://127.0.0.1:8001/a'", b"refresh: 0;URL='/upstream/m/a'"),
        (b"refresh: 0; url=/a", b"refresh: 0; url=/upstream/m/a"),
        (b"Refresh: 5", b"Refresh: 5"),
        (b"Location: /v1/x", b"Location: /upstream/m/v1/x"),
        (b"Location: /upstream/m/v1/x", b"Location: /upstream/m/v1/x"),
        (b"Location: http://127.0.0.1:8001/upstream/m/v1/x", b"Location: /upstream/m/v1/x"),
        (b"Location: ../x", b"Location: ../x"),
        (
            b"Location: http://localhost:8001/login?next=http://localhost:8001/v1/x",
            b"Location: /upstream/m/login?next=/upstream/m/v1/x",
        ),
    ],
)
def test_references_stay_behind_the_prefix_by_which_the_client_came(line: bytes, hidden: bytes) -> None:
    fields = b"server: u\r\n%b\r\nx: http://127.0.0.1:8001/\r\n"
    assert TCP.hide(fields % line, PREFIX) == fields % hidden


@pytest.mark.parametrize(
    "value",
    [
        b"https://example.com/v1/x",
        b"https://example.com:443//localhost/x",
        b"https://example.com:8001/x",
        b"//cdn.example.com/x",
        b"http://10.0.0.7:9000/x",
        b"/v1/x",
        b"x",
        b"",
    ],
)
def test_other_references_are_left_alone(value: bytes) -> None:
    line = b"Location: " + value + b"\r\n"
    assert TCP.hide(line, b"") == line


@pytest.mark.parametrize(
    "value",
    [
        b"http://127.0.0.1:9000/x",
        b"http://localhost:8002/",
        b"https://[::1]:8443/x",
        b"http://127.0.0.1:8001//evil.example/x",
        b"http://127.0.0.1:8001/\\evil.example/x",
        b"http://127.0.0.1:8001\\x",
        b"127.0.0.1:8001/v1/x",
        b"https://example.com/?to=127.0.0.1:8001",
        b"http://127.0.0.1:x/",
    ],
)
def test_what_cannot_be_a_path_of_llmuxs_is_not_passed_on(value: bytes) -> None:
    with pytest.raises(AddressExposed, match="Location") as raised:
        TCP.hide(b"Location: " + value + b"\r\n", b"")
    assert "127.0.0.1" not in str(raised.value)


REMOTE = RemoteAddress("api.example.org", 443, Remote(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "/openai/v1"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"https://api.example.org/openai/v1/x?a=b#c", b"/v1/x?a=b#c"),
        (b"https://API.example.org:443/openai/v1/x", b"/v1/x"),
        (b"http://api.example.org/openai/v1/x", b"/v1/x"),
        (b"//api.example.org/openai/v1/x", b"/v1/x"),
        (b"/openai/v1/x", b"/v1/x"),
        (b"https://api.example.org", b"/"),
        (b"https://api.example.org:8443/x", b"https://api.example.org:8443/x"),
        (b"https://api.example.org.evil.example/x", b"https://api.example.org.evil.example/x"),
        (b"https://example.org/x", b"https://example.org/x"),
    ],
)
def test_references_of_a_remote_server_to_itself_become_paths(value: bytes, expected: bytes) -> None:
    assert REMOTE.hide(b"location: " + value + b"\r\n", b"") == b"location: " + expected + b"\r\n"


def test_references_of_a_remote_server_in_links_get_the_prefix() -> None:
    line = b'link: <https://api.example.org/openai/v1/a>; rel="next", </openai/v1/b>\r\n'
    assert REMOTE.hide(line, PREFIX) == b'link: </upstream/m/v1/a>; rel="next", </upstream/m/v1/b>\r\n'
