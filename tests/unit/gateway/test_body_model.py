"""Reading and replacing the model's name in request bodies."""

import json

import pytest

from llmux.gateway.body_model import model_in_form, model_in_json, replace_model
from llmux.gateway.errors import InvalidJson, MalformedRequest, MissingModel
from llmux.gateway.http.bodies import is_form
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.routing import Destination, Route, find_model

ROUTE = Route(Destination.ENGINE, "/v1/completions", b"/v1/completions")


def head(*fields: str) -> RequestHead:
    parsed = RequestHead()
    parsed.parse("\r\n".join(["POST /v1/completions HTTP/1.1", "Host: x", *fields, "", ""]).encode())
    return parsed


def test_only_the_top_level_model_is_read() -> None:
    body = b'{"tools":[{"model":"decoy"}],"messages":[{"model":"decoy"}],"model":"m"}'
    assert model_in_json(body) == ("m", False)
    assert model_in_json(b'{"model":"\\u006d"}') == ("m", False)
    assert model_in_json(b'{"model":"a","model":"m"}') == ("m", False)


@pytest.mark.parametrize(
    ("body", "streams"),
    [
        (b'{"stream":true,"model":"m"}', True),
        (b'{"model":"m","stream": true }', True),
        (b'{"model":"m","stream":false}', False),
        (b'{"model":"m","stream":"True"}', True),
        (b'{"model":"m","stream":1}', True),
        (b'{"model":"m","stream":null}', False),
        (b'{"model":"m","stream":"no"}', False),
        (b'{"model":"m","stream":{"true":true}}', False),
        (b'{"model":"m","options":{"stream":true}}', False),
    ],
)
def test_stream_is_read_as_engines_read_it(body: bytes, streams: bool) -> None:
    assert model_in_json(body) == ("m", streams)
    assert find_model(head("model-override: m"), ROUTE, body).streams is streams


@pytest.mark.parametrize("body", [b'{"model":"m"}}', b"\xff", b'{"model":"\xff"}', b"{'model':'m'}", b"\xef\xbb\xbf{}"])
def test_invalid_json(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        model_in_json(body)


def test_replacing_the_model_keeps_the_spelling_of_all_other_values() -> None:
    body = b'{"a":1.10e5, "big":123456789012345678901234567890,"model":"old","u":"\\u00e9", "n": [ 1 ]}'
    replaced = replace_model(body, 'ne"w')
    assert json.loads(replaced)["model"] == 'ne"w'
    for text in (b"1.10e5", b"123456789012345678901234567890", b'"\\u00e9"', b"[ 1 ]"):
        assert text in replaced


@pytest.mark.parametrize(
    ("fields", "body", "expected"),
    [
        (["model-override: m"], b'{"model":"other","x":1}', ("m", b'{"model":"m","x":1}')),
        (["model-override: m"], b'{"x": 1}', ("m", b'{"x": 1}')),
        (["model-override: m"], b'{"model": "m"}', ("m", b'{"model": "m"}')),
        (["model-override: m"], b"", ("m", b"")),
        (["model-override: m"], b"not json", ("m", b"not json")),
        (["model-override: m"], b'{"model": ""}', ("m", b'{"model":"m"}')),
        (["model-override: m"], b'{"model": 5}', ("m", b'{"model": 5}')),
        ([], b'{"model": "m"}', ("m", b'{"model": "m"}')),
        (["Content-Type: text/plain"], b'{"model": "m"}', ("m", b'{"model": "m"}')),
    ],
)
def test_header_overrides_body_which_changes_only_where_necessary(
    fields: list[str], body: bytes, expected: tuple[str, bytes]
) -> None:
    assert find_model(head(*fields), ROUTE, body) == (*expected, False)


def test_path_overrides_body_and_header_overrides_path() -> None:
    route = Route(Destination.ENGINE, "other", b"/v1/completions", "from-path")
    assert find_model(head(), route, b'{"model":"b"}') == ("from-path", b'{"model":"from-path"}', False)
    assert find_model(head("model-override: h"), route, b"{}") == ("h", b"{}", False)


def form(*parts: str) -> bytes:
    return "".join(f"--B\r\n{part}\r\n" for part in parts).encode() + b"--B--\r\n"


MODEL = 'Content-Disposition: form-data; name="model"\r\n\r\nwhisper'
FILE = 'Content-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav\r\n\r\n"model":\x01'
DECOY = 'Content-Disposition: form-data; name="model"; filename="x"\r\n\r\ndecoy'


def test_form_field() -> None:
    content_type = b'multipart/form-data; boundary="B"'
    assert is_form(content_type)
    assert model_in_form(form(FILE, MODEL, DECOY), content_type) == "whisper"
    parsed = head('Content-Type: Multipart/Form-Data; boundary="B"')
    assert find_model(parsed, ROUTE, form(MODEL)) == ("whisper", form(MODEL), False)
    with pytest.raises(MissingModel):
        model_in_form(form(FILE), content_type)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(MODEL), b"multipart/form-data"),
        (b"no form at all", b"multipart/form-data; boundary=B"),
        (form(*[FILE] * 300, MODEL), b"multipart/form-data; boundary=B"),
        (form(MODEL + "x" * 2000), b"multipart/form-data; boundary=B"),
    ],
)
def test_malformed_forms(body: bytes, content_type: bytes) -> None:
    with pytest.raises(MalformedRequest):
        model_in_form(body, content_type)
