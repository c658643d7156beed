"""Which model a request is for, and what becomes of its body."""

import pytest

from llmux.core.names import ModelName, NameKind, own_names, register
from llmux.engines.paths import COMMON_ENDPOINTS
from llmux.errors import ModelNotFound
from llmux.gateway.endpoints import with_further
from llmux.gateway.errors import InvalidJson, MalformedRequest, MissingModel, UnknownPath, UnsupportedMediaType
from llmux.gateway.http.bodies import Body
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.options import DEFAULT_CONTROL_PATHS
from llmux.gateway.routing import EngineCall, Route, Router, find_in_json, find_model, is_in_json_alone
from tests.unit.gateway.test_body_model import STREAMS
from tests.unit.gateway.test_form import FILE, MODEL, field, form

NAMES = {
    **own_names(["m", "h", "from-path", "whisper"]),
    **register(
        (
            ModelName("base", "base", "base"),
            ModelName("gpt-4", "base", "base", NameKind.ALIAS),
            ModelName("served", "base", "served", NameKind.SERVED),
            ModelName("sql", "base", "sql", NameKind.ADAPTER),
        )
    ),
}
FORM = 'Content-Type: Multipart/Form-Data; boundary="B"'


def head(*fields: str, method: str = "POST", target: str = "/v1/completions") -> RequestHead:
    if method == "POST" and not any(field.lower().startswith("content-type") for field in fields):
        fields = ("Content-Type: application/json", *fields)
    parsed = RequestHead()
    parsed.parse("\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", *fields, "", ""]).encode())
    return parsed


def route(path: str) -> Route:
    return Router(DEFAULT_CONTROL_PATHS, lambda: NAMES, ["/v1/videos"]).find(path.encode())


def call_of(body: bytes, *fields: str, path: str = "/v1/completions", method: str = "POST") -> EngineCall:
    return find_model(head(*fields, method=method, target=path), route(path.partition("?")[0]), body, NAMES)


def find(body: bytes, *fields: str, path: str = "/v1/completions", method: str = "POST") -> tuple[str, Body, bool]:
    """Model, body, and whether the answer streams."""
    call = call_of(body, *fields, path=path, method=method)
    return call.model, call.body, call.streams


@pytest.mark.parametrize(
    ("fields", "path", "expected"),
    [
        ([], "/v1/completions", True),
        ([], "/v1/completions?model=h", True),
        ([], "/v1/videos", True),
        (["model-override: m"], "/v1/completions", False),
        (["Content-Type:"], "/v1/completions", False),
        ([FORM], "/v1/audio/transcriptions", False),
        ([], "/upstream/m/v1/completions", False),
        ([], "/v1/responses/resp_1/cancel", False),
        ([], "/v1/unheard-of", False),
        ([], "/health", False),
    ],
)
def test_the_head_tells_whether_nothing_but_a_json_body_names_the_model(
    fields: list[str], path: str, expected: bool
) -> None:
    assert is_in_json_alone(head(*fields, target=path), route(path.partition("?")[0])) is expected


def test_what_a_json_body_names_is_what_the_call_is_made_of() -> None:
    body = b'{"model":"gpt-4","stream":true,"keep_alive":5}'
    name, edited, streams, keep_alive = find_in_json(body, NAMES)
    call = call_of(body)
    assert (name.model, edited, streams, keep_alive) == (
        "base",
        b'{"model":"base","stream":true,"keep_alive":5}',
        True,
        b"5",
    )
    assert (call.model, call.body, call.streams, call.keep_alive) == (name.model, edited, streams, keep_alive)


@pytest.mark.parametrize(("body", "streams"), STREAMS)
def test_stream_is_read_however_the_model_is_named(body: bytes, streams: bool) -> None:
    assert call_of(body).streams is streams
    assert call_of(body, "model-override: m").streams is streams


@pytest.mark.parametrize(
    ("fields", "body", "expected"),
    [
        (["model-override: m"], b'{"model":"other","x":1}', ("m", b'{"model":"m","x":1}')),
        (["model-override: m"], b'{"x": 1}', ("m", b'{"x": 1}')),
        (["model-override: m"], b'{"model": "m"}', ("m", b'{"model": "m"}')),
        (["model-override: m"], b'{"model": ""}', ("m", b'{"model":"m"}')),
        (["model-override: m"], b'\xef\xbb\xbf{"model": "m"}', ("m", b'{"model": "m"}')),
        (["model-override: m"], b'{"model":"other","x":NaN}', ("m", b'{"model":"m","x":NaN}')),
        ([], b'{"model": "m"}', ("m", b'{"model": "m"}')),
        ([], b'\xef\xbb\xbf{"model": "m"}', ("m", b'{"model": "m"}')),
    ],
)
def test_header_overrides_body_which_changes_only_where_necessary(
    fields: list[str], body: bytes, expected: tuple[str, bytes]
) -> None:
    assert find(body, *fields) == (*expected, False)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", InvalidJson),
        (b"not json", InvalidJson),
        (b'{"model": 5}', MalformedRequest),
        (b"[]", MalformedRequest),
        (b'{"model":"a","\xff":1}', InvalidJson),
    ],
)
@pytest.mark.parametrize(
    ("path", "fields"), [("/v1/completions", ["model-override: m"]), ("/upstream/m/v1/completions", [])]
)
def test_a_body_that_no_engine_would_take_is_refused_however_the_model_is_named(
    body: bytes, error: type[Exception], path: str, fields: list[str]
) -> None:
    with pytest.raises(error):
        find(body, *fields, path=path)


def test_path_overrides_body_and_header_overrides_path() -> None:
    path = "/upstream/from-path/v1/completions"
    assert find(b'{"model":"b"}', path=path) == ("from-path", b'{"model":"from-path"}', False)
    assert find(b"{}", "model-override: h", path=path) == ("h", b"{}", False)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [("base", "base"), ("gpt-4", "base"), ("served", "served"), ("sql", "sql")],
)
def test_every_name_reaches_its_engine_by_a_name_that_the_engine_knows(asked: str, sent: str) -> None:
    for fields, path, body in (
        ([], "/v1/completions", b'{"model":"%b"}' % asked.encode()),
        ([f"model-override: {asked}"], "/v1/completions", b'{"model":"other"}'),
        ([], f"/upstream/{asked}/v1/completions", b'{"model":"other"}'),
    ):
        assert find(body, *fields, path=path) == ("base", b'{"model":"%b"}' % sent.encode(), False)
    call = find(form(FILE, field("model", asked)), FORM, path="/v1/audio/transcriptions")
    assert call == ("base", form(FILE, field("model", sent)), False)


@pytest.mark.parametrize(
    ("named", "in_body", "sent"),
    [
        ("base", b'{"model":"sql"}', b'{"model":"sql"}'),
        ("gpt-4", b'{"model":"sql"}', b'{"model":"sql"}'),
        ("base", b'{"model":"gpt-4"}', b'{"model":"base"}'),
        ("base", b'{"model":"m"}', b'{"model":"base"}'),
        ("base", b"{}", b"{}"),
        ("sql", b'{"model":"base"}', b'{"model":"sql"}'),
        ("sql", b"{}", b'{"model":"sql"}'),
    ],
)
def test_a_path_or_header_chooses_the_engine_and_the_body_among_its_names(
    named: str, in_body: bytes, sent: bytes
) -> None:
    assert find(in_body, path=f"/upstream/{named}/v1/completions") == ("base", sent, False)
    assert find(in_body, f"model-override: {named}") == ("base", sent, False)


def test_forms() -> None:
    audio = "/v1/audio/transcriptions"
    assert find(form(MODEL), FORM, path=audio) == ("whisper", form(MODEL), False)
    assert call_of(form(MODEL, field("stream", "true")), FORM, path=audio).streams
    expected = ("m", form(FILE, field("model", "m")), False)
    assert find(form(FILE, MODEL), FORM, "model-override: m", path=audio) == expected
    assert find(form(FILE, MODEL), FORM, path=f"/upstream/m{audio}") == expected
    assert find(form(FILE), FORM, path=f"/upstream/m{audio}") == ("m", form(FILE), False)
    with pytest.raises(MissingModel):
        find(form(FILE), FORM, path=audio)
    for fields in ([FORM], [FORM, "model-override: m"]):
        with pytest.raises(MalformedRequest):
            find(b"no form", *fields, path=audio)


def test_without_a_body_the_query_can_name_the_model() -> None:
    for method, path in (
        ("GET", "/v1/responses/r?model=m"),
        ("DELETE", "/responses/r?x=%20&model=m"),
        ("GET", "/v1/files?model=m"),
        ("GET", "/v1/videos?model=m"),
    ):
        assert find(b"", path=path, method=method) == ("m", b"", False)
    assert call_of(b"", path="/v1/responses/r?model=gpt-4", method="GET").model == "base"
    with pytest.raises(MissingModel, match="model=MODEL"):
        find(b"", path="/v1/responses/r", method="GET")
    with pytest.raises(ModelNotFound):
        find(b"", path="/v1/responses/r?model=nobody", method="GET")
    with pytest.raises(MalformedRequest):
        find(b"", path="/v1/responses/r?" + "a&" * 2000 + "a=1", method="GET")


def test_a_body_without_a_type_is_refused_as_vllm_does() -> None:
    for path in ("/v1/completions", "/upstream/m/v1/completions", "/v1/audio/transcriptions"):
        with pytest.raises(UnsupportedMediaType, match="missing"):
            find(b'{"model":"m"}', "Content-Type:", path=path)
    assert call_of(b'{"model":"m"}', "Content-Type:", path="/v1/videos").model == "m"
    with pytest.raises(UnknownPath, match=r"Did you mean /v1/chat/completions\?.*inference_paths"):
        find(b"", "Content-Type:", path="/v1/chat/completion")


def test_an_unknown_path_is_that_unless_a_model_is_named() -> None:
    for body in (b"", b"text", b"{}", b'{"model":"nobody"}'):
        with pytest.raises(UnknownPath):
            find(body, path="/v1/nonsense")
    assert find(b'{"model":"m"}', path="/v1/nonsense") == ("m", b'{"model":"m"}', False)
    assert find(b"\0\xff", "model-override: m", path="/v1/nonsense") == ("m", b"\0\xff", False)


def test_further_paths_take_any_body() -> None:
    assert with_further(["/v1/videos"]).keys() - COMMON_ENDPOINTS.keys() == {"/v1/videos"}
    assert find(b"\0\xff", "model-override: m", path="/v1/videos") == ("m", b"\0\xff", False)
    assert find(b'{"model":"gpt-4"}', path="/v1/videos") == ("base", b'{"model":"base"}', False)


def test_a_name_that_differs_only_in_its_spelling_is_shown_as_it_is() -> None:
    with pytest.raises(ModelNotFound, match=r"'m\\n' does not exist, but 'm' does"):
        find(b'{"model":"m\\n"}')
    assert str(ModelNotFound("e\u0301", ["\xe9"])).startswith(r"the model 'e\u0301' does not exist, but '\xe9' does")
