"""Who may use the control API, with a key and without one."""

import pytest
from multidict import CIMultiDict

from llmux.control.authorization import Denied, check_access, check_metrics

LOCAL = {"Host": "localhost:3000"}


def check(headers: dict[str, str] | None = None, peer: str | None = "127.0.0.1", key: str | None = None) -> int | None:
    denied = check_access(CIMultiDict(LOCAL if headers is None else headers), peer, key)
    assert denied is None or denied.reason
    return None if denied is None else denied.status


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_programs_on_this_machine_are_allowed_without_a_key(peer: str) -> None:
    assert check(peer=peer) is None


@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "0.0.0.0", "2001:db8::1", "", None])
def test_nobody_else_is_allowed_without_a_key(peer: str | None) -> None:
    assert check(peer=peer) == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:3000", "127.0.0.1:3000", "[::1]:3000", "[::1]"])
def test_names_of_this_machine(host: str) -> None:
    assert check({"Host": host}) is None


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example:3000",
        "localhost.example",
        "127.0.0.1.example",
        "localhost@evil.example",
        "evil.example@localhost",
        "localhost/x",
        "localhost:port",
        "[::1",
        "",
    ],
)
def test_a_name_that_merely_resolves_to_this_machine_is_denied(host: str) -> None:
    assert check({"Host": host}) == 403


def test_a_missing_and_a_doubled_host_are_denied() -> None:
    assert check({}) == 403
    doubled = CIMultiDict([("Host", "localhost"), ("Host", "localhost")])
    assert check_access(doubled, "127.0.0.1", None) is not None


@pytest.mark.parametrize(
    "header",
    [
        "Forwarded",
        "X-Forwarded-For",
        "x-forwarded-proto",
        "X-FORWARDED-ANYTHING",
        "Via",
        "CF-Connecting-IP",
        "True-Client-IP",
        "X-Client-IP",
        "X-Real-IP",
    ],
)
def test_a_proxy_is_denied(header: str) -> None:
    assert check({**LOCAL, header: "for=127.0.0.1"}) == 403


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:3000", "localhost:3000"),
        ("http://LOCALHOST:3000", "localhost:3000"),
        ("http://localhost", "localhost:80"),
        ("http://[::1]:3000", "[::1]:3000"),
    ],
)
def test_the_status_pages_own_origin_is_allowed(origin: str, host: str) -> None:
    assert check({"Host": host, "Origin": origin}) is None


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://localhost:3001",
        "http://localhost",
        "http://127.0.0.1:3000",
        "http://localhost:3000.evil.example",
        "http://localhost:3000@evil.example",
        "localhost:3000",
        "file://",
        "null",
        "",
    ],
)
def test_another_origin_is_denied(origin: str) -> None:
    assert check({**LOCAL, "Origin": origin}) == 403


@pytest.mark.parametrize(
    "header",
    [{"Authorization": "Bearer secret"}, {"authorization": "bearer secret"}, {"X-Api-Key": "secret"}],
)
def test_with_the_key_requests_from_anywhere_are_allowed(header: dict[str, str]) -> None:
    assert check({"Host": "llmux.example", "X-Forwarded-For": "10.0.0.9", **header}, "10.0.0.1", "secret") is None


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic secret"},
        {"Authorization": "secret"},
        {"Authorization": "Bearer "},
        {"X-Api-Key": "sécret"},
        {"X-Api-Key": "\udcff"},
        {"X-Api-Key": ""},
    ],
)
def test_if_a_key_is_configured_this_machine_needs_it_too(header: dict[str, str]) -> None:
    assert check({**LOCAL, **header}, "127.0.0.1", "secret") == 401


def test_the_reason_names_the_remedy() -> None:
    denied = check_access(CIMultiDict(LOCAL), "10.0.0.1", None)
    assert isinstance(denied, Denied)
    assert "admin_key" in denied.reason


@pytest.mark.parametrize(
    ("headers", "keys", "is_allowed"),
    [
        ({}, (), True),
        ({}, ("key",), False),
        ({"Authorization": "Bearer key"}, ("other", "key"), True),
        ({"X-Api-Key": "key", "Authorization": "Bearer dummy"}, ("key",), True),
        ({"Authorization": "Bearer wrong"}, ("key",), False),
        ({"Authorization": "Basic key"}, ("key",), False),
    ],
)
def test_metrics_need_a_key_where_there_are_keys(
    headers: dict[str, str], keys: tuple[str, ...], is_allowed: bool
) -> None:
    denied = check_metrics(CIMultiDict(headers), keys)
    assert (denied is None) is is_allowed
    assert denied is None or denied.status == 401
