"""How long a client wants its model to stay: Ollama's formats, in a header or in a body."""

import math

import pytest

from llmux.gateway.errors import MalformedRequest
from llmux.gateway.keep_alive import requested_keep_alive


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300", 300.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("-1", math.inf),
        ("-0.5", math.inf),
        ("10m", 600.0),
        (" 1h30m ", 5400.0),
        ("1.5h", 5400.0),
        ("500ms", 0.5),
        ("0s", 0.0),
        ("-1m", math.inf),
        ("20µs", 2e-5),
    ],
)
def test_numbers_are_seconds_and_durations_have_units(text: str, seconds: float) -> None:
    assert requested_keep_alive(text.encode(), b"") == pytest.approx(seconds)
    assert requested_keep_alive(None, f'"{text}"'.encode()) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("field", "seconds"), [(b"300", 300.0), (b"0", 0.0), (b"-1", math.inf), (b"2.5", 2.5), (b"null", None), (b"", None)]
)
def test_a_body_may_have_a_number(field: bytes, seconds: float | None) -> None:
    assert requested_keep_alive(None, field) == seconds


def test_the_header_goes_before_the_body() -> None:
    assert requested_keep_alive(b"5", b'"10m"') == 5.0
    assert requested_keep_alive(b"5", b"nonsense") == 5.0


@pytest.mark.parametrize("text", ["", "soon", "10 m", "5d", "m", "1h-5m", "nan", "inf", "1e3", "9" * 65])
def test_what_is_none_of_them_is_refused_in_a_header(text: str) -> None:
    with pytest.raises(MalformedRequest, match="x-llmux-keep-alive must be a number of seconds or a duration as 10m"):
        requested_keep_alive(text.encode(), b"")


@pytest.mark.parametrize(
    "field", [b"true", b"[]", b"{}", b'"soon"', b"NaN", b'"' + b"1" * 100 + b'"', b'"\\ud800"', b"\xff"]
)
def test_what_is_none_of_them_is_refused_in_a_body(field: bytes) -> None:
    with pytest.raises(MalformedRequest, match="^keep_alive must be"):
        requested_keep_alive(None, field)
