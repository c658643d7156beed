"""API keys and the priorities they allow."""

import pytest

from llmux.core.request import Priority
from llmux.gateway.errors import InvalidApiKey, MalformedRequest
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.keys import ApiKeys, requested_priority

KEYS = ApiKeys(frozenset(("person", "both")), frozenset(("job", "both")))


def head(*fields: str) -> RequestHead:
    parsed = RequestHead()
    parsed.parse("\r\n".join(["GET / HTTP/1.1", "Host: x", *fields, "", ""]).encode())
    return parsed


@pytest.mark.parametrize(
    ("field", "allowed"),
    [
        ("Authorization: Bearer person", Priority.INTERACTIVE),
        ("authorization: bearer  job ", Priority.BATCH),
        ("X-Api-Key: job", Priority.BATCH),
        ("Api-Key: person", Priority.INTERACTIVE),
        ("X-Api-Key: both", Priority.BATCH),
        ("Authorization: Bearer dummy\r\nX-Api-Key: person", Priority.INTERACTIVE),
        ("Authorization: Bearer job\r\nX-Api-Key: dummy", Priority.BATCH),
        ("Authorization: Basic person\r\nApi-Key: job", Priority.BATCH),
    ],
)
def test_a_key_allows_a_priority(field: str, allowed: Priority) -> None:
    assert KEYS.authenticate(head(field)) is allowed


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["X-Api-Key: perso"],
        ["Authorization: Basic person"],
        ["X-Api-Key: \xe9"],
        ["Authorization: Bearer ", "X-Api-Key:"],
    ],
)
def test_other_keys_are_refused(fields: list[str]) -> None:
    with pytest.raises(InvalidApiKey):
        KEYS.authenticate(head(*fields))


def test_batch_keys_alone_exclude_everybody_else() -> None:
    keys = ApiKeys(frozenset(), frozenset(("job",)))
    assert keys.authenticate(head("X-Api-Key: job")) is Priority.BATCH
    with pytest.raises(InvalidApiKey):
        keys.authenticate(head())


def test_without_keys_any_authorization_is_accepted() -> None:
    assert ApiKeys(frozenset()).authenticate(head("Authorization: Bearer whatever")) is Priority.INTERACTIVE


@pytest.mark.parametrize(
    ("header", "allowed", "priority"),
    [
        (b"batch", Priority.INTERACTIVE, Priority.BATCH),
        (b" Interactive ", Priority.INTERACTIVE, Priority.INTERACTIVE),
        (b"interactive", Priority.BATCH, Priority.BATCH),
    ],
)
def test_the_header_can_only_lower_the_priority(header: bytes, allowed: Priority, priority: Priority) -> None:
    assert requested_priority(header, allowed) is priority


def test_unknown_priorities_are_refused() -> None:
    with pytest.raises(MalformedRequest):
        requested_priority(b"urgent", Priority.BATCH)
