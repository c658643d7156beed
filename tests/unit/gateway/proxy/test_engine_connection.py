"""The order in which requests reach engines, and how much of an answer is worked off at a time."""

import asyncio
import select
import socket

import pytest

from llmux.access import Outcome, Upstream
from llmux.gateway.http.response_head import ResponseHead
from llmux.gateway.options import GatewayOptions
from llmux.gateway.proxy.engine_connection import EngineConnection
from llmux.gateway.proxy.pool import EnginePools
from llmux.gateway.proxy.turns import Turns
from llmux.gateway.statistics import GatewayStatistics
from tests.support.gateway import InMemoryRelay

REQUEST = b"GET / HTTP/1.1\r\n\r\n"
JSON = b"Content-Type: application/json\r\nContent-Length: 13\r\n\r\n"
CHAT = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + JSON + b'{"model":"m"}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
TINY_CHUNKS = b"1\r\nx\r\n" * 20_000
END = b"0\r\n\r\n"


def asked(version: bytes = b"HTTP/1.1") -> InMemoryRelay:
    """One request at the engine."""
    relay = InMemoryRelay()
    relay.client.data_received(CHAT.replace(b"HTTP/1.1", version))
    return relay


async def turns_until(relay: InMemoryRelay, count: int) -> int:
    """How many turns of the loop it takes until so many requests have ended."""
    turns = 0
    while len(relay.access.ended) < count:
        turns += 1
        relay.next_iteration()
    return turns


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


class Receiver:
    """Expects no answer."""

    def answer_began(self, head: ResponseHead) -> None:
        raise AssertionError

    def answer_ended(self) -> None:
        raise AssertionError

    def engine_lost(self, reason: str) -> None:
        raise AssertionError


async def test_each_request_that_has_waited_reaches_its_engine_before_the_next_is_sent() -> None:
    loop = asyncio.get_running_loop()
    pools = EnginePools(GatewayOptions(), GatewayStatistics(), Turns(loop.call_soon))
    pool = pools.of(Upstream("127.0.0.1", 1, None))
    ours, engines = zip(*(socket.socketpair() for _ in range(8)), strict=True)
    connections = [(await loop.create_connection(lambda: EngineConnection(pool), sock=end))[1] for end in ours]
    arrived = []
    for connection, engine in zip(connections, engines, strict=True):
        connection.send(Receiver(), REQUEST, b"", to_head_request=False, has_waited=True)
        arrived.append(select.select([engine], [], [], 0)[0] == [engine] and engine.recv(64) == REQUEST)
    for connection, engine in zip(connections, engines, strict=True):
        connection.abort()
        engine.close()
    assert all(arrived)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_an_answer_of_tiny_chunks_is_relayed_over_many_turns(version: bytes, together: bool) -> None:
    relay = asked(version)
    relay.engine.data_received(CHUNKED + TINY_CHUNKS + END if together else CHUNKED)
    if not together:
        relay.engine.data_received(TINY_CHUNKS + END)
    assert len(relay.client_side.written) < 10_000, "worked off at once"
    assert not relay.engine_side.reads
    assert await turns_until(relay, 1) > 10
    _, body = relay.client_side.written.split(b"\r\n\r\n", 1)
    assert body == (TINY_CHUNKS + END if version == b"HTTP/1.1" else b"x" * 20_000)
    assert relay.access.ended == [(1, Outcome.COMPLETED)]
    assert relay.engine.usable and relay.engine_side.reads


async def test_what_is_left_for_later_turns_is_held_like_what_has_not_been_read() -> None:
    relay = asked()
    holder = relay.access.asked[0].holder
    holder.frozen()
    relay.engine.data_received(CHUNKED + TINY_CHUNKS + END)
    holder.held()
    relayed = len(relay.client_side.written)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(relay.client_side.written) == relayed
    holder.thawed()
    await turns_until(relay, 1)
    assert relay.client_side.written.endswith(TINY_CHUNKS + END)


async def test_nothing_is_relayed_in_a_later_turn_for_a_client_that_left() -> None:
    relay = asked()
    relay.engine.data_received(CHUNKED + TINY_CHUNKS + END)
    relayed = len(relay.client_side.written)
    relay.client.connection_lost(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(relay.client_side.written) == relayed
    assert relay.engine_side.aborted


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("chunks", [b"1\r\nx\r\n", TINY_CHUNKS])
async def test_a_connection_with_bytes_beyond_its_answer_is_not_used_again(chunks: bytes, version: bytes) -> None:
    relay = asked(version)
    relay.engine.data_received(CHUNKED + chunks + END + b"x")
    await turns_until(relay, 1)
    assert relay.engine_side.aborted and not relay.engine.usable


async def test_a_large_answer_in_few_chunks_is_relayed_at_once() -> None:
    relay = asked()
    body = b"%x\r\n%b\r\n" % (200_000, b"x" * 200_000) + END
    relay.engine.data_received(CHUNKED + body)
    assert relay.client_side.written.endswith(body)


@pytest.mark.parametrize(("count", "is_taken"), [(1, True), (16, True), (17, False), (100_000, False)])
def test_interim_answers_are_passed_over_up_to_a_limit(count: int, is_taken: bool) -> None:
    for pieces in ([INTERIM * count + ANSWER], [INTERIM] * min(count, 20) + [ANSWER]):
        relay = asked()
        for piece in pieces:
            relay.engine.data_received(piece)
        assert (relay.access.ended == [(1, Outcome.COMPLETED)]) is is_taken
        assert [number for number, _ in relay.access.given_back] == ([] if is_taken else [1])


def test_the_limit_of_interim_answers_is_each_requests_own() -> None:
    relay = InMemoryRelay()
    for number in range(1, 4):
        relay.client.data_received(CHAT)
        relay.engine.data_received(INTERIM * 16 + ANSWER)
        assert len(relay.access.ended) == number


@pytest.mark.parametrize("piece_bytes", [1, 1000, 200_000])
def test_a_head_is_limited_however_it_arrives(piece_bytes: int) -> None:
    for size_bytes, is_taken in ((60_000, True), (66_000, False)):
        relay = asked()
        head = ANSWER.replace(b"content", b"X: %b\r\ncontent" % (b"a" * size_bytes))
        for begin in range(0, len(head), piece_bytes):
            relay.engine.data_received(head[begin : begin + piece_bytes])
        assert (relay.access.ended == [(1, Outcome.COMPLETED)]) is is_taken
        assert relay.engine.usable is is_taken


async def test_answers_of_tiny_chunks_of_many_engines_do_not_add_up() -> None:
    relay = asked()
    relay.engine._owner.turns.spend(10_000)
    relay.engine.data_received(CHUNKED + TINY_CHUNKS + END)
    head, body = relay.client_side.written.split(b"\r\n\r\n", 1)
    assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"")
    assert await turns_until(relay, 1) > 10
    assert relay.client_side.written == head + b"\r\n\r\n" + TINY_CHUNKS + END


async def test_a_large_piece_with_few_lines_is_relayed_in_large_parts() -> None:
    relay = asked()
    chunk = b"c8\r\n" + b"x" * 200 + b"\r\n"
    relay.engine.data_received(CHUNKED + chunk * 400 + END)
    assert await turns_until(relay, 1) < 4
