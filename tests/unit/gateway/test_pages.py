"""Which web pages may use the data plane, and what browsers are told about it."""

import pytest

from llmux.errors import RequestError
from llmux.gateway.errors import HostNotAllowed, OriginNotAllowed
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.pages import PagePolicy, without_cors

GUARD = PagePolicy(["https://chat.example.org"], ["box.lan", "Llm.Example.org"])
LOOPBACK = ("127.0.0.1", 3000)


def head(*fields: str, method: str = "OPTIONS") -> RequestHead:
    parsed = RequestHead()
    parsed.parse("\r\n".join([f"{method} / HTTP/1.1", "Host: x", *fields, "", ""]).encode())
    return parsed


def refusal(host: str | None, origin: str | None = None, site: str | None = None) -> RequestError | None:
    encoded = (None if text is None else text.encode() for text in (host, origin, site))
    return GUARD.refusal(*encoded, own_address=LOOPBACK)  # type: ignore[misc]


@pytest.mark.parametrize(
    "host",
    [
        "localhost:3000",
        "LOCALHOST",
        "localhost.",
        "app.localhost:3000",
        "127.0.0.1:3000",
        "10.1.2.3",
        "[::1]:3000",
        "[fe80::1]",
        "box.lan:3000",
        "llm.example.org",
        "host.docker.internal:3000",
        "host.containers.internal",
        None,
    ],
)
def test_names_of_this_machine(host: str | None) -> None:
    assert refusal(host) is None


@pytest.mark.parametrize(
    "host",
    ["attacker.example", "attacker.example:3000", "127.0.0.1.attacker.example", "localhost.attacker.example", "box",
     "box.lan.attacker.example", "a@localhost", "localhost/x", "", "[::1", "localhost:port", "0x7f000001.example"],
)  # fmt: skip
def test_a_name_that_merely_leads_here_is_refused(host: str) -> None:
    assert isinstance(refusal(host), HostNotAllowed)


@pytest.mark.parametrize(
    ("origin", "site"),
    [
        (None, None),
        (None, "none"),
        (None, "same-origin"),
        ("http://localhost:5173", "cross-site"),
        ("http://127.0.0.1:3000", "same-origin"),
        ("https://app.localhost", None),
        ("http://[::1]:8080", None),
        ("https://chat.example.org", "cross-site"),
        ("HTTPS://chat.example.org", None),
        ("app://obsidian.md", "cross-site"),
        ("vscode-webview://1234", None),
    ],
)
def test_pages_of_this_machine_and_allowed_ones(origin: str | None, site: str | None) -> None:
    assert refusal("localhost:3000", origin, site) is None


@pytest.mark.parametrize(
    ("origin", "site"),
    [
        ("http://attacker.example", None),
        ("http://attacker.example", "same-origin"),
        ("http://chat.example.org", None),
        ("https://chat.example.org:8443", None),
        ("https://localhost.attacker.example", None),
        ("http://127.0.0.1.attacker.example", None),
        ("http://localhost@attacker.example", None),
        ("null", None),
        ("", None),
        ("http://10.0.0.7", None),
        (None, "cross-site"),
        (None, " Cross-Site"),
    ],
)
def test_foreign_pages_are_refused(origin: str | None, site: str | None) -> None:
    assert isinstance(refusal("localhost:3000", origin, site), OriginNotAllowed)


def test_a_page_that_llmux_itself_is_called_like_is_no_foreign_one() -> None:
    assert refusal("box.lan:3000", "http://box.lan") is None


def test_only_loopback_is_guarded_and_only_without_keys() -> None:
    foreign = (b"attacker.example", b"http://attacker.example", None)
    for address in (("10.0.0.1", 3000), ("::ffff:10.0.0.1", 3000, 0, 0), "/run/llmux.sock", None):
        assert GUARD.refusal(*foreign, own_address=address) is None
    for address in (("127.8.0.1", 3000), ("::1", 3000, 0, 0), ("::ffff:127.0.0.1", 3000, 0, 0)):
        assert GUARD.refusal(*foreign, own_address=address) is not None
    assert PagePolicy([], None).refusal(*foreign, own_address=LOOPBACK) is None
    assert not PagePolicy([], None).does_anything
    assert PagePolicy(["*"], ()).refusal(b"localhost", b"http://any.example", None, LOOPBACK) is None


def test_the_fields_of_an_answer() -> None:
    assert GUARD.fields_for(None) == b""
    assert GUARD.fields_for(b"http://attacker.example") == b"vary: Origin\r\n"
    allowed = GUARD.fields_for(b"https://chat.example.org")
    assert allowed.startswith(b"access-control-allow-origin: https://chat.example.org\r\nvary: Origin\r\n")
    assert b"x-request-id" in allowed
    assert PagePolicy(["*"], None).fields_for(b"null").startswith(b"access-control-allow-origin: *\r\n")
    assert PagePolicy([], ()).fields_for(b"https://chat.example.org") == b""


ASKS = ("Origin: https://chat.example.org", "Access-Control-Request-Method: POST")


def test_a_preflight_is_recognised() -> None:
    fields = GUARD.preflight_fields(head(*ASKS, "access-control-request-headers: authorization,Content-Type"))
    assert fields is not None
    assert b"access-control-allow-origin: https://chat.example.org\r\n" in fields
    assert b"access-control-allow-headers: authorization,Content-Type\r\n" in fields
    assert b"access-control-allow-methods: " in fields
    assert b"access-control-max-age: " in fields
    assert b"private-network" not in fields
    private = GUARD.preflight_fields(head(*ASKS, "Access-Control-Request-Private-Network: true"))
    assert private is not None
    assert private.endswith(b"access-control-allow-private-network: true\r\n")


def test_a_preflight_of_a_foreign_page_is_told_nothing() -> None:
    assert GUARD.preflight_fields(head("Origin: http://attacker.example", ASKS[1])) == b"vary: Origin\r\n"


@pytest.mark.parametrize(
    "other",
    [
        head(ASKS[0]),
        head(ASKS[1]),
        head(*ASKS, method="POST"),
        head(*ASKS, "Content-Length: 3"),
        head(*ASKS, method="GET"),
    ],
)
def test_what_is_no_preflight(other: RequestHead) -> None:
    assert GUARD.preflight_fields(other) is None
    assert PagePolicy([], ()).preflight_fields(head(*ASKS)) is None


def test_an_engines_own_fields_are_dropped() -> None:
    fields = b"Access-Control-Allow-Origin: *\r\nX-A: access-control-allow-origin: b\r\naccess-control-max-age: 1\r\n"
    assert without_cors(fields) == b"X-A: access-control-allow-origin: b\r\n"
