"""Parsing the heads of answers, whole or as repetitions."""

import pytest

from llmux.gateway.http.chunks import FramingError
from llmux.gateway.http.response_head import Framing, ResponseHead, ResponseHeadReader

HEAD = b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: %b\r\nContent-Type: application/json\r\n\r\n"


def read(reader: ResponseHeadReader, head: bytes, *, to_head_request: bool = False) -> ResponseHead:
    return reader.read(head.removesuffix(b"\r\n\r\n"), to_head_request)


def facts(head: ResponseHead) -> tuple[object, ...]:
    return head.status, head.reusable, head.status_line, head.fields, head.content_length, head.framing


@pytest.mark.parametrize("lengths", [("5", "17"), ("17", "5"), ("5", "5"), ("5", "0"), ("0", "5"), ("5", "0017")])
def test_a_head_that_differs_in_its_length_is_read_as_if_it_came_first(lengths: tuple[str, str]) -> None:
    reader = ResponseHeadReader()
    for length in (*lengths, *lengths):
        head = HEAD % length.encode()
        assert facts(read(reader, head)) == facts(ResponseHead(head, to_head_request=False))


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
    read(reader, HEAD % b"17")
    assert facts(read(reader, other)) == facts(ResponseHead(other, to_head_request=False))


@pytest.mark.parametrize("length", [b"+5", b"5,5", b"0x5", b"", b"-1", b"5\r\nContent-Length: 6", b"9" * 30])
def test_an_invalid_length_is_refused_after_a_valid_one_too(length: bytes) -> None:
    reader = ResponseHeadReader()
    read(reader, HEAD % b"17")
    with pytest.raises(FramingError):
        read(reader, HEAD % length)


def test_an_answer_to_head_has_no_body_whatever_came_before() -> None:
    reader = ResponseHeadReader()
    read(reader, HEAD % b"17")
    assert read(reader, HEAD % b"18", to_head_request=True).framing is Framing.NONE
    assert read(reader, HEAD % b"18").framing is Framing.LENGTH


@pytest.mark.parametrize(
    "head", [HEAD % b"5", HEAD.replace(b"Content-Length: %b", b"Transfer-Encoding: chunked")], ids=["length", "chunked"]
)
def test_answers_with_the_same_head_share_its_parsed_form(head: bytes) -> None:
    reader = ResponseHeadReader()
    first = read(reader, head)
    assert read(reader, bytes(bytearray(head))) is first
    assert read(reader, head, to_head_request=True) is not first
    read(reader, head.replace(b"now", b"later"))
    assert facts(read(reader, head)) == facts(first)


def test_a_head_with_addresses_is_not_shared_because_they_are_replaced_in_it() -> None:
    reader = ResponseHeadReader()
    head = HEAD.replace(b"Date: now", b"Location: http://127.0.0.1:8000/v1") % b"5"
    first = read(reader, head)
    assert first.has_addresses
    first.fields = first.fields.replace(b"127.0.0.1:8000", b"example.org")
    assert read(reader, head).fields == head.split(b"\r\n", 1)[1][:-2]


PLAIN = b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 2\r\n\r\n"
MALFORMED = [
    PLAIN.replace(b": 2", b": 2\r\ncontent-length\t: 6"),
    PLAIN.replace(b": 2", b": 2\r\ncontent-length : 6"),
    PLAIN.replace(b"X-A: b", b"X-A: b\rc"),
    PLAIN.replace(b"X-A: b", b"X-A: b\r"),
    PLAIN.replace(b"X-A: b", b"X-A: b\x00"),
    PLAIN.replace(b"X-A: b", b"X-A: b\x7f"),
    PLAIN.replace(b"X-A: b", b"X-A: b\x0b"),
    PLAIN.replace(b"X-A: b", b"X A: b"),
    PLAIN.replace(b"X-A: b", b" X-A: b"),
    PLAIN.replace(b"X-A: b", b"X-A: b\r\n folded"),
    PLAIN.replace(b"X-A: b", b"X-A: b\r\n\tfolded"),
    PLAIN.replace(b"X-A: b", b": b"),
    PLAIN.replace(b"X-A: b", b"b"),
    PLAIN.replace(b"X-A: b", b"X-\xe9: b"),
    PLAIN.replace(b"X-A: b", b'X"A: b'),
    PLAIN.replace(b"X-A: b", b"X-A: b\ntransfer-encoding: chunked"),
    PLAIN.replace(b"X-A: b", b"X-A: b\ncontent-length: 6"),
    PLAIN.replace(b"X-A: b", b"X-A: b\nset-cookie: evil=1"),
    PLAIN.replace(b"OK", b"O\nK"),
    PLAIN.replace(b"OK", b"O\x00K"),
    PLAIN.replace(b"OK", b"OK\r"),
    PLAIN.replace(b"200 OK", b"200OK"),
    PLAIN.replace(b"200", b"2 0"),
    PLAIN.replace(b"Content-Length: 2", b"Content-Length: 2\x0b"),
]


@pytest.mark.parametrize("malformed", MALFORMED)
def test_a_malformed_head_is_refused_however_its_body_is_framed(malformed: bytes) -> None:
    for head in (malformed, malformed.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked"), malformed):
        for to_head_request in (False, True):
            with pytest.raises(FramingError):
                read(ResponseHeadReader(), head, to_head_request=to_head_request)


@pytest.mark.parametrize("malformed", MALFORMED)
def test_a_malformed_head_is_refused_after_one_that_was_not(malformed: bytes) -> None:
    reader = ResponseHeadReader()
    read(reader, PLAIN)
    with pytest.raises(FramingError):
        read(reader, malformed)


@pytest.mark.parametrize("fields", [b"X-A: caf\xe9\r\n", b"x-a:\tb\t\r\n", b"x-a:\r\n", b"!#$%&'*+.^_`|~: x\r\n", b""])
def test_unusual_but_well_formed_heads_pass_as_they_are(fields: bytes) -> None:
    head = b"HTTP/1.1 200 \xe9\r\n" + fields + b"content-length: 2\r\n\r\n"
    read = ResponseHead(head, to_head_request=False)
    assert read.status_line + read.fields + b"\r\n" == head


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_cannot_have_a_body_has_no_transfer_encoding(status: int) -> None:
    head = b"HTTP/1.1 %d X\r\ntransfer-encoding: chunked\r\nx: y\r\n\r\n" % status
    read = ResponseHead(head, to_head_request=False)
    assert (read.framing, read.fields, read.reusable) == (Framing.NONE, b"x: y\r\n", True)


@pytest.mark.parametrize("name", [b"Location", b"content-location", b"LINK", b"Refresh"])
def test_a_head_with_addresses_is_looked_at_each_time(name: bytes) -> None:
    reader = ResponseHeadReader()
    head = b"HTTP/1.1 201 Created\r\n%b: http://127.0.0.1:8001/x\r\ncontent-length: 2\r\n\r\n" % name
    for _ in range(3):
        assert read(reader, head).has_addresses
    assert not read(reader, PLAIN).has_addresses


def test_alternative_services_are_not_passed_on() -> None:
    head = b'HTTP/1.1 200 OK\r\nAlt-Svc: h2=":8001"\r\ncontent-length: 2\r\n\r\n'
    assert ResponseHead(head, to_head_request=False).fields == b"content-length: 2\r\n"


def test_an_answer_that_cannot_have_a_body_announces_none() -> None:
    head = b"HTTP/1.1 %b\r\ncontent-length: 5\r\nx: y\r\nContent-Length: 5\r\n\r\n"
    assert ResponseHead(head % b"204 No Content", to_head_request=False).fields == b"x: y\r\n"
    not_modified = b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"
    assert ResponseHead(not_modified, to_head_request=False).fields == b"content-length: 5\r\n"
