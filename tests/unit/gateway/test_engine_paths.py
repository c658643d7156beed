"""Which paths lead to which model's engine, and what becomes of bodies, where engines are of several kinds."""

import pytest

from llmux.core.names import own_names
from llmux.engines.base import Engine
from llmux.engines.paths import COMMON_ENDPOINTS
from llmux.engines.registry import KINDS
from llmux.errors import RequestError
from llmux.gateway.body_model import TooLong
from llmux.gateway.engine_paths import EngineRules
from llmux.gateway.errors import InvalidJson, MethodNotAllowed, UnknownPath, UnsupportedMediaType
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.options import DEFAULT_CONTROL_PATHS
from llmux.gateway.routing import EngineCall, Route, Router, check_request, find_model, request_line
from tests.support.engine_rules import COMMON, ENGINES, OWN, UNKNOWN

ALL = {**ENGINES, "any": UNKNOWN}
NAMES = own_names(ALL)


def router(engines: dict[str, EngineRules] = ALL) -> Router:
    return Router(DEFAULT_CONTROL_PATHS, lambda: NAMES, ["/v1/videos"], engines)


def ask(
    path: str, body: bytes = b"", *, method: str = "POST", content_type: str = "application/json"
) -> tuple[EngineCall, Route, bytes]:
    """The call, its own route, and the request line that the engine gets."""
    head = RequestHead()
    fields = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", f"Content-Type: {content_type}"]
    head.parse("\r\n".join([*fields, "", ""]).encode())
    route = router().find(head.path)
    check_request(head, route)
    call = find_model(head, route, body, NAMES)
    own = route if route.variants is None else route.variants.of(call.model)
    return call, own, request_line(head, own)


def named(model: str, rest: bytes = b"") -> bytes:
    return b'{"model":"%b"%b}' % (model.encode(), rest)


def test_a_path_that_only_one_kind_has_is_refused_for_the_others_with_the_models_that_have_it() -> None:
    call = ask("/infill", named("o"))[0]
    assert (call.model, call.body, call.streams, call.added_fields) == ("o", named("o"), False, {})
    for path, body in (("/infill", named("m")), ("/upstream/m/infill", named("m")), ("/infill?x=1", named("cold"))):
        with pytest.raises(UnknownPath) as refused:
            ask(path, body)
        text = str(refused.value)
        assert text.startswith("no such path: /infill. The model '") and "is run by usual" in text
        assert "ask 'o' or 'cold-o' or 'any'" in text
    with pytest.raises(UnknownPath, match="is run by own, which does not have it; ask 'm'"):
        ask("/v1/chat/completions", named("o"))


def test_a_model_of_whose_paths_nothing_is_known_may_have_those_of_any_kind() -> None:
    for path in ("/infill", "/v1/chat/completions", "/v1/videos", "/embeddings"):
        assert ask(path, named("any"))[0].model == "any"


def test_every_engine_has_the_further_paths() -> None:
    for model in ALL:
        assert ask("/v1/videos", named(model))[0].model == model


def test_a_path_without_v1_is_the_engines_own_where_it_has_one() -> None:
    assert ask("/embeddings?a=b", named("o"))[2] == b"POST /embeddings?a=b HTTP/1.1\r\n"
    assert ask("/embeddings?a=b", named("m"))[2] == b"POST /v1/embeddings?a=b HTTP/1.1\r\n"
    assert ask("/completions", named("o"))[2] == b"POST /v1/completions HTTP/1.1\r\n"


def test_a_get_finds_its_model_in_the_query_and_wakes_nothing() -> None:
    call, own, line = ask("/state?model=o", method="GET")
    assert (call.model, own.may_wake, line) == ("o", False, b"GET /state?model=o HTTP/1.1\r\n")
    with pytest.raises(UnknownPath, match="run by usual"):
        ask("/state?model=m", method="GET")
    with pytest.raises(MethodNotAllowed):
        ask("/state", named("o"))


def test_methods_and_types_are_those_of_the_models_own_kind() -> None:
    form = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--B--\r\n'
    kind = "multipart/form-data; boundary=B"
    assert ask("/v1/images/edits", form % b"m", content_type=kind)[0].model == "m"
    with pytest.raises(UnsupportedMediaType):
        ask("/v1/images/edits", form % b"o", content_type=kind)
    assert ask("/v1/images/edits", named("o"))[0].model == "o"


def test_nothing_is_asked_of_a_route_where_all_engines_take_the_same() -> None:
    for engines in ({}, {"m": COMMON, "cold": COMMON}, {"m": COMMON, "cold": EngineRules("other", COMMON.rules)}):
        for path in (*COMMON_ENDPOINTS, "/upstream/m/v1/completions", "/v1/unknown", "/v1/videos"):
            assert router(engines).find(path.encode()).variants is None
    assert router({"m": COMMON, "o": OWN}).find(b"/v1/unknown").variants is not None


@pytest.mark.parametrize("path", ["/infill", "/v1/completions", "/v1/unknown", "/v1/videos", "/upstream/{}/infill"])
@pytest.mark.parametrize(
    "field",
    [rb'"id_slot":1', rb'"\u0069d_slot" : [1]', rb'"id_slot":1,"id_sl\u006ft":2', rb'"ID_Slot":1',
     '"\u212aeep_alive":0'.encode(), rb'"\u212aeep_alive":0', rb'"id_\u017flot":0'],
)  # fmt: skip
def test_fields_that_an_engine_must_not_get_are_removed_however_they_are_spelt(path: str, field: bytes) -> None:
    body = b'{"model":"%b",' + field + rb',"x":{"id_slot":1.50},"y":"\u00e9"}'
    assert ask(path.format("o"), body % b"o")[0].body == rb'{"model":"o","x":{"id_slot":1.50},"y":"\u00e9"}'
    if "infill" not in path:
        assert ask(path, body % b"m")[0].body == body % b"m"


def test_a_body_without_such_fields_stays_as_it_is() -> None:
    for rest in (b"", rb', "x" : "\u00e9"', b', "x": "id_slot"', b',"x": {"id_slot":1}'):
        assert ask("/infill", named("o", rest))[0].body == named("o", rest)


def test_a_body_in_another_encoding_is_not_overlooked() -> None:
    body = '{"model":"o","id_slot":1}'.encode("utf-16")
    with pytest.raises(InvalidJson):
        ask("/infill", body)
    assert ask("/upstream/o/v1/videos", body)[0].body == b'{"model":"o"}'
    assert ask("/infill", b'\xef\xbb\xbf{"model":"o","id_slot":NaN}')[0].body == b'{"model":"o"}'


def test_a_body_that_nobody_can_read_is_not_passed_on_where_it_may_have_such_a_field() -> None:
    for path in ("/upstream/o/v1/videos", "/upstream/o/v1/unknown"):
        with pytest.raises(InvalidJson):
            ask(path, b'{"id_slot":1} more')
        for body in (b'["id_slot"]', b"\xff binary"):
            assert ask(path, body)[0].body == body
    assert ask("/upstream/m/v1/videos", b'{"id_slot":1} more')[0].model == "m"


def test_a_thread_reads_what_takes_too_long() -> None:
    rest = b',"id_slot":1,"x":"%b"' % (b"y" * 40_000)
    with pytest.raises(TooLong):
        ask("/infill", named("o", rest))
    assert ask("/v1/completions", named("m", rest))[0].body == named("m", rest)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_no_kind_forbids_what_another_has(kind: type[Engine]) -> None:
    engines = {name: EngineRules(name, one.rules) for name, one in KINDS.items()}
    routes = Router((), lambda: NAMES, (), engines)
    for path in engines[kind.kind].rules.endpoints:
        try:
            route = routes.find(b"/upstream/m" + path.encode())
        except RequestError as error:
            raise AssertionError(path) from error
        if route.variants is not None:
            group = route.variants.paths.group_of[kind.kind]
            assert route.variants.own[group] is not None
