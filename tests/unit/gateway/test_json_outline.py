"""The outline of a large JSON object."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmux.gateway import json_outline as module
from llmux.gateway import pieces
from llmux.gateway.errors import InvalidJson, MalformedRequest
from llmux.gateway.json_outline import outline_of
from tests.support.examples import examples


@pytest.fixture(autouse=True, params=[7, 64 * 1024])
def _piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", request.param)
    monkeypatch.setattr(pieces, "_PAUSE_SECONDS", 0)


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
VALUES = st.recursive(PLAIN, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=8)
KEYS = st.one_of(st.sampled_from(["model", "stream", "keep_alive", "Model", "mod\\el", 'mod"el', "{", "]"]), st.text())
INDENTS = st.sampled_from([None, 0, 1])


def read(text: bytes) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text).items() if key in ("model", "stream", "keep_alive")}


def same(one: Any, other: Any) -> bool:
    return json.dumps(one) == json.dumps(other)


@settings(examples(20), suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, VALUES, max_size=6), INDENTS, st.booleans())
def test_the_outline_says_the_same(members: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    body = json.dumps(members, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    outline = outline_of(body)
    assert same(read(outline.text), read(body))
    replaced = json.loads(pieces.replace_at(body, outline.model_places, b'"new"'))
    assert same(replaced, {**members, "model": "new"} if "model" in members else members)


@settings(examples(20), suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.data())
def test_what_is_cut_short_is_refused(members: dict[str, Any], data: st.DataObject) -> None:
    body = json.dumps(members).encode()
    with pytest.raises(InvalidJson):
        outline_of(body[: data.draw(st.integers(min_value=1, max_value=len(body) - 1))])


@pytest.mark.parametrize(
    "body",
    [b'{"a":1}}', b'{"a" 1}', b'{"a":1 "b":2}', b"{a:1}", b'{"a":}', b'{"a":1,}', b'{,}', b'{"a":[1}',
     b'{"a":"x', b'{"a":"\\', b"{"],
)  # fmt: skip
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        outline_of(body)


def test_escaped_names_and_repeated_members() -> None:
    body = b'{"model":"a","\\u006dodel":"b" , "stream":true,"model" : "c","x":{"model":"d"}}'
    outline = outline_of(body)
    assert json.loads(outline.text) == {"model": "c", "stream": True}
    replaced = pieces.replace_at(body, outline.model_places, b'"new"')
    assert json.loads(replaced) == {"model": "new", "stream": True, "x": {"model": "d"}}
    assert replaced == b'{"model":"new","\\u006dodel":"new" , "stream":true,"model" : "new","x":{"model":"d"}}'


def test_a_byte_order_mark_is_skipped_and_what_is_no_object_stays_none() -> None:
    assert outline_of(b'\xef\xbb\xbf {"model":"a"}').text == b'{"model":"a"}'
    for body in (b"[1,2]", b'"text"', b"12", b"", b"  "):
        assert not outline_of(body).text.startswith(b"{")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "A", "\u212aey", "key", "x"]), VALUES), max_size=8),
    st.sets(st.sampled_from(["a", "b", "key"])),
    st.sampled_from(["", " ", "\n"]),
)
def test_watched_members_can_be_cut_out(members: list[tuple[str, Any]], names: set[str], space: str) -> None:
    texts = [f"{space}{json.dumps(name)}{space}:{space}{json.dumps(value)}{space}" for name, value in members]
    body = ("{" + ",".join(texts) + "}").encode()
    outline = outline_of(body, frozenset(("a", "b", "key")))
    places = outline.places_of(frozenset(names))
    cut = pieces.edit(body, [(start, end, b"") for start, end in places])
    kept = [(name, value) for name, value in members if name.casefold() not in names]
    assert same(json.loads(cut, object_pairs_hook=list), _as_pairs(kept))
    if len(kept) == len(members):
        assert cut == body


def _as_pairs(members: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """As ``object_pairs_hook`` gives them."""
    return [(name, json.loads(json.dumps(value), object_pairs_hook=list)) for name, value in members]


def test_long_values_are_left_out() -> None:
    body = json.dumps({"model": "x" * 10_000, "stream": [1] * 10_000, "n": "y" * 10_000}).encode()
    assert outline_of(body).text == b'{"model":"...","stream":[]}'


def test_deep_nesting_needs_no_stack() -> None:
    for brackets in (b"[" * 5_000 + b"]" * 5_000, b'[{"a":' * 2_000 + b"1" + b"}]" * 2_000, b'{"a":[]}'):
        assert outline_of(b'{"a":' + brackets + b',"model":"m"}').text == b'{"model":"m"}'
    with pytest.raises(InvalidJson):
        outline_of(b'{"a":' + b"[" * 5_000 + b"}")


def test_only_the_last_model_is_kept_and_no_object_has_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_MEMBERS", 100)
    outline = outline_of(b"{" + b'"model":"m",' * 99 + b'"\\u006dodel":"n"}')
    assert outline.text == b'{"model":"n"}'
    assert len(outline.model_places) == 100
    with pytest.raises(MalformedRequest, match="members"):
        outline_of(b"{" + b'"":0,' * module._MAX_MEMBERS + b'"x":0}')
