"""Parsing the heads of answers, whole or as repetitions."""

import pytest

from llmux.gateway.http.chunks import FramingError
from llmux.gateway.http.response_head import Framing, ResponseHead, ResponseHeadReader

HEAD = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: %b\r\nContent-Type: application/json\r\n\r\n"


def facts(head: ResponseHead) -> tuple[object, ...]:
    return head.status, head.reusable, head.status_line, head.fields, head.content_length, head.framing


@pytest.mark.parametrize("lengths", [("5", "17"), ("17", "5"), ("5", "5"), ("5", "0"), ("0", "5"), ("5", "0017")])
def test_a_head_that_differs_in_its_length_is_read_as_if_it_came_first(lengths: tuple[str, str]) -> None:
    reader = ResponseHeadReader()
    for length in (*lengths, *lengths):
        head = HEAD % length.encode()
        assert facts(reader.read(head, to_head_request=False)) == facts(ResponseHead(head, to_head_request=False))


@pytest.mark.parametrize(
    "other",
    [
        HEAD.replace(b"200 OK", b"500 No") % b"5",
        HEAD.replace(b"now", b"later") % b"5",
        HEAD.replace(b"Date", b"Connection: close\r\nDate") % b"5",
        HEAD.replace(b"json\r\n", b"json\r\nConnection: close\r\n") % b"5",
        HEAD.replace(b"Content-Length: %b", b"Transfer-Encoding: chunked"),
        HEAD.replace(b"Content-Length: %b\r\n", b""),
    ],
)
def test_a_head_with_any_other_difference_is_parsed_anew(other: bytes) -> None:
    reader = ResponseHeadReader()
    reader.read(HEAD % b"17", to_head_request=False)
    assert facts(reader.read(other, to_head_request=False)) == facts(ResponseHead(other, to_head_request=False))


@pytest.mark.parametrize("length", [b"+5", b"5,5", b"0x5", b"", b"-1", b"5\r\nContent-Length: 6", b"9" * 30])
def test_an_invalid_length_is_refused_after_a_valid_one_too(length: bytes) -> None:
    reader = ResponseHeadReader()
    reader.read(HEAD % b"17", to_head_request=False)
    with pytest.raises(FramingError):
        reader.read(HEAD % length, to_head_request=False)


def test_an_answer_to_head_has_no_body_whatever_came_before() -> None:
    reader = ResponseHeadReader()
    reader.read(HEAD % b"17", to_head_request=False)
    assert reader.read(HEAD % b"18", to_head_request=True).framing is Framing.NONE
    assert reader.read(HEAD % b"18", to_head_request=False).framing is Framing.LENGTH
