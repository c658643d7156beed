"""Which event of a stream is taken for its first token."""

import pytest

from tests.support.gateway import InMemoryRelay, post

BODY = b'{"model":"m","stream":true}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def named(name: str, data: str = "{}") -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()


def unnamed(name: str) -> bytes:
    """As engines send it that leave the name to the data, whose last member it is."""
    return f'data: {{"response":{{"instructions":"\\"type\\":\\"x\\""}},"type":"{name}"}}\n\n'.encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


RESPONSES = ["response.created", "response.in_progress", "response.output_item.added", "response.output_text.delta"]
MESSAGES = ["message_start", "ping", "content_block_start", "content_block_delta"]


def streaming(path: str, head: bytes = CHUNKED) -> InMemoryRelay:
    relay = InMemoryRelay()
    relay.client.data_received(post(BODY, path=path))
    relay.engine.data_received(head)
    return relay


@pytest.mark.parametrize("event", [named, unnamed])
@pytest.mark.parametrize(("path", "names"), [("/v1/responses", RESPONSES), ("/v1/messages", MESSAGES)])
def test_the_first_token_is_the_first_event_with_output(path: str, names: list[str], event: type) -> None:
    relay = streaming(path)
    *announcing, delta = [chunk(event(name)) for name in names]
    for piece in [chunk(b": comment\n\n"), *announcing]:
        relay.engine.data_received(piece)
        assert relay.access.first_tokens == []
    for _ in range(2):
        relay.engine.data_received(delta)
        assert relay.access.first_tokens == [1]
    relay.engine.data_received(b"0\r\n\r\n")
    assert relay.client_side.written.endswith(b"".join([*announcing, delta, delta, b"0\r\n\r\n"]))


@pytest.mark.parametrize("head", [HEAD + b"\r\n", HEAD + b"content-length: 100000\r\n\r\n", CHUNKED])
def test_it_does_not_matter_how_the_stream_is_framed_and_cut(head: bytes) -> None:
    announced, output = named("response.created", "x" * 300), named("response.output_text.delta")
    body = chunk(announced[:9]) + chunk(announced[9:]) + chunk(output) if head is CHUNKED else announced + output
    for size in (1, 7, len(body)):
        relay = streaming("/v1/responses", head)
        for begin in range(0, len(body), size):
            assert relay.access.first_tokens == []
            relay.engine.data_received(body[begin : begin + size])
            if relay.access.first_tokens:
                assert begin + size >= len(body) - 4, "in the middle of an event"
                break
        assert relay.access.first_tokens == [1]


@pytest.mark.parametrize("name", ["", "event: response.created\n"])
def test_an_announcement_may_be_of_any_size(name: str) -> None:
    """It repeats the request's instructions."""
    relay = streaming("/v1/responses")
    line = 'data: {"response":"' + "x" * 1_000_000 + '","type":"response.created"}\n\n'
    body = chunk((name + line).encode())
    for begin in range(0, len(body), 65_536):
        relay.engine.data_received(body[begin : begin + 65_536])
    assert relay.access.first_tokens == []
    relay.engine.data_received(chunk(named("response.output_text.delta")))
    assert relay.access.first_tokens == [1]


def test_an_answer_that_carries_no_output_has_no_first_token() -> None:
    relay = streaming("/v1/responses")
    for name in ("response.created", "response.failed"):
        relay.engine.data_received(chunk(named(name)))
    relay.engine.data_received(b"0\r\n\r\n")
    assert relay.access.first_tokens == []
    assert len(relay.access.ended) == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_where_nothing_is_announced_the_first_byte_is_the_first_token(path: str) -> None:
    relay = streaming(path)
    assert relay.access.first_tokens == []
    relay.engine.data_received(chunk(b"data: 1"))
    assert relay.access.first_tokens == [1]


def test_an_answer_in_one_piece_has_no_first_token() -> None:
    relay = InMemoryRelay()
    relay.client.data_received(post(b'{"model":"m"}', path="/v1/responses"))
    relay.engine.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{")
    assert relay.access.first_tokens == []
