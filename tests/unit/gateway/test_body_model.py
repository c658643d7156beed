"""Reading and replacing the model's name in JSON bodies."""

import json

import pytest

from llmux.gateway.body_model import TooLong, read_json, replace_model, require_valid
from llmux.gateway.errors import InvalidJson, MalformedRequest
from llmux.gateway.json_outline import outline_of


def read(body: bytes) -> tuple[str | None, bool]:
    found = read_json(body)
    return found.model, found.streams


def test_only_the_top_level_model_is_read() -> None:
    body = b'{"tools":[{"model":"decoy"}],"messages":[{"model":"decoy"}],"model":"m"}'
    assert read(body) == ("m", False)
    assert read(b'{"model":"\\u006d"}') == ("m", False)
    assert read(b'{"model":"a","model":"m"}') == ("m", False)
    assert read(b"{}") == read(b'{"model":null}') == (None, False)


STREAMS = [
    (b'{"stream":true,"model":"m"}', True),
    (b'{"model":"m","stream": true }', True),
    (b'{"model":"m","stream":false}', False),
    (b'{"model":"m","stream":"True"}', True),
    (b'{"model":"m","stream":1}', True),
    (b'{"model":"m","stream":null}', False),
    (b'{"model":"m","stream":"no"}', False),
    (b'{"model":"m","stream":{"true":true}}', False),
    (b'{"model":"m","options":{"stream":true}}', False),
]


@pytest.mark.parametrize(("body", "streams"), STREAMS)
def test_stream_is_read_as_engines_read_it(body: bytes, streams: bool) -> None:
    assert read(body) == ("m", streams)
    assert read(body.removesuffix(b"}") + b',"x":NaN}') == ("m", streams), "by Python's parser, too"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"model":"m"}}', "Extra data at byte 13"),
        (b"\xff", "not utf-8 at byte 0"),
        (b'{"model":"\xff"}', "not utf-8 at byte 10"),
        (b"{'model':'m'}", "Expecting property name enclosed in double quotes at byte 1"),
        ('{"model":"ü","x":01}'.encode(), "Expecting ',' delimiter at byte 19"),
        (b'{"model":"a\x01"}', "Invalid control character at byte 11"),
        (b'{"model":"m"', "Expecting ',' delimiter at byte 12"),
        (b"\xef\xbb\xbf{'", "Expecting property name enclosed in double quotes at byte 1"),
        (b"", "the body is empty"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"x":NaN,"y":' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"model":"m","x":"' + b"x" * (5 << 20) + b'",}', f"byte {(5 << 20) + 20}"),
    ],
)
def test_invalid_json_is_told_what_is_wrong_and_where(body: bytes, where: str) -> None:
    with pytest.raises(InvalidJson) as raised:
        try:
            read_json(body)
        except TooLong:
            require_valid(body)
    assert where in str(raised.value)


NEARLY_JSON = [
    b"NaN",
    b"[NaN, -Infinity,Infinity ]",
    b'"\\ud83d"',
    b'"\\ude00\\ud83d\\ude00\\ud83d"',
    b'"\\uD83D\\uDE00"',
]


@pytest.mark.parametrize("value", NEARLY_JSON)
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_long_body_of_what_only_python_reads_is_valid(value: bytes, start: bytes) -> None:
    body = start + b'{"model":"m","x":%b,"y":"%b"}' % (value, b"NaN," * 10_000)
    require_valid(body)
    with pytest.raises(InvalidJson, match=f"at byte {len(body) - len(start) + 5}"):
        require_valid(body[:-1] + b',"z":nan}')


@pytest.mark.parametrize("value", [b"-NaN", b"nan", b"NaNs", b"+Infinity", b'"\\ud8"'])
def test_a_long_body_of_what_python_does_not_read_either_is_not(value: bytes) -> None:
    with pytest.raises(InvalidJson):
        require_valid(b'{"model":"m","x":%b,"y":"%b"}' % (value, b" " * 40_000))


def test_what_takes_an_object_for_each_value_is_left_to_a_thread() -> None:
    body = b'{"model":"m","x":[%bNaN]}' % (b"[]," * 20_000)
    with pytest.raises(TooLong):
        read_json(body)
    with pytest.raises(TooLong):
        replace_model(body.replace(b"NaN", b"1"), "n")


@pytest.mark.parametrize("body", [b"[1]", b'{"model":5}', b'{"model":["m"]}', b'"m"', b"NaN", b'{"model":5,"x":NaN}'])
def test_what_is_no_object_with_a_name_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest) as raised:
        read_json(body)
    assert type(raised.value) is MalformedRequest


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","logit_bias":{"5":-Infinity,"6":Infinity},"x":NaN}',
        b'{"model":"m","text":"cut in the middle \\ud83d"}',
        b'{"model":"m","text":"\\udc00\\ud83d"}',
    ],
)
def test_what_pythons_json_reads_is_read_and_passed_on_as_it_is(body: bytes) -> None:
    found = read_json(body)
    assert (found.model, found.text) == ("m", body)
    assert repr(json.loads(found.with_model("n"))) == repr(json.loads(body) | {"model": "n"}), "NaN equals nothing"


ENCODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("characters", [0, 1000, 9_000, 40_000])
def test_utf16_and_utf32_are_refused_whatever_their_size(encoding: str, characters: int) -> None:
    """Sizes on both sides of the limit up to which Python's parser reads a body."""
    body = json.dumps({"model": "m", "x": "y" * characters}).encode(encoding)
    for read in (read_json, require_valid, outline_of):
        with pytest.raises(InvalidJson, match=f"encoded as {encoding[:6].upper()}; send it as UTF-8"):
            read(body)


def test_a_byte_order_mark_is_stripped() -> None:
    found = read_json(b'\xef\xbb\xbf{"model":"m","stream":true}')
    assert found == ("m", True, b'{"model":"m","stream":true}', b"")


def test_replacing_the_model_keeps_the_spelling_of_all_other_values() -> None:
    body = b'{"a":1.10e5, "big":123456789012345678901234567890,"model":"old","u":"\\u00e9", "n": [ 1 ]}'
    replaced = replace_model(body, 'ne"w')
    assert json.loads(replaced)["model"] == 'ne"w'
    for text in (b"1.10e5", b"123456789012345678901234567890", b'"\\u00e9"', b"[ 1 ]"):
        assert text in replaced


def test_a_body_in_which_the_model_cannot_be_replaced_is_invalid() -> None:
    with pytest.raises(InvalidJson):
        replace_model(b'{"model":"a","\xff":1}', "m")


@pytest.mark.parametrize(
    "body", [b'{"model":"m","a":"\xff"}', b'{"model":"m","\xc7":1}', b'\xef\xbb\xbf{"model":"m","a":["\xe4"]}']
)
def test_what_is_skipped_must_be_utf8_too(body: bytes) -> None:
    for read in (read_json, require_valid):
        with pytest.raises(InvalidJson, match="not UTF-8 at byte"):
            read(body)


def test_text_in_any_script_is_read() -> None:
    body = '{"model":"m","a":"äß 模型 \\ud800"}'.encode()
    assert read_json(body).model == "m"
    require_valid(body)
    assert read_json(b'{"model":"m","a":"\xed\xa0\x80"}').model == "m", "as Python's parser reads it"
