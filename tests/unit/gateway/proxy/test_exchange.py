"""When an exchange lets its engine be read, and when it relays what has been read."""

import pytest

from llmux.access import Outcome
from llmux.errors import EngineDied
from tests.support.gateway import InMemoryRelay, post

REQUEST = post(b'{"model":"m"}')
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello "
ERROR = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy"


def test_an_engine_is_read_once_its_client_has_caught_up_and_its_lease_is_thawed() -> None:
    for first_lifted in ("client", "lease"):
        relay = InMemoryRelay()
        relay.client.data_received(REQUEST)
        holder = relay.access.asked[0].holder
        relay.engine.data_received(ANSWER)
        assert relay.engine_side.reads
        relay.client.pause_writing()
        holder.frozen()
        holder.held()
        assert not relay.engine_side.reads
        lift = {"client": relay.client.resume_writing, "lease": holder.thawed}
        lift.pop(first_lifted)()
        assert not relay.engine_side.reads
        lift.popitem()[1]()
        assert relay.engine_side.reads
        relay.engine.data_received(b"world")
        assert relay.access.ended == [(1, Outcome.COMPLETED)]


@pytest.mark.parametrize("queue_seconds", [0.0, 0.001])
def test_a_request_is_written_at_once_if_it_has_waited(queue_seconds: float) -> None:
    relay = InMemoryRelay()
    relay.access.queue_seconds = queue_seconds
    for _ in range(2):
        relay.engine_side.written = relay.engine_side.written_at_once = b""
        relay.receive(REQUEST)
        assert relay.engine_side.written_at_once == (relay.engine_side.written if queue_seconds else b"")
        assert relay.engine_side.written.endswith(b'{"model":"m"}')
        relay.engine.data_received(ANSWER + b"world")
    assert relay.access.ended == [(1, Outcome.COMPLETED), (2, Outcome.COMPLETED)]


@pytest.mark.parametrize(
    ("steps", "relayed_after"),
    [(["healthy"], 1), (["held", "healthy", "thawed"], 3), (["held", "thawed", "healthy"], 3)],
)
def test_a_server_error_waits_until_its_engine_is_healthy_and_not_held(steps: list[str], relayed_after: int) -> None:
    relay = InMemoryRelay()
    relay.access.alive = None
    relay.client.data_received(REQUEST)
    holder = relay.access.asked[0].holder
    holder.frozen()
    relay.engine.data_received(ERROR)
    for number, step in enumerate(steps, 1):
        assert (relay.engine_side.reads, relay.client_side.written) == (False, b"")
        match step:
            case "healthy":
                relay.access.reports[0](True)
            case "held":
                holder.held()
            case _:
                holder.thawed()
        assert bool(relay.client_side.written) is (number == relayed_after)
    assert relay.client_side.written.startswith(b"HTTP/1.1 503 Busy\r\n")
    assert relay.client_side.written.endswith(b"busy")
    assert relay.access.ended == [(1, Outcome.COMPLETED)]
    assert relay.engine_side.reads


def test_a_client_that_is_full_before_the_answer_begins_pauses_the_engine_after_the_head() -> None:
    relay = InMemoryRelay()
    relay.client.data_received(REQUEST)
    relay.client.pause_writing()
    assert relay.engine_side.reads
    relay.engine.data_received(ANSWER)
    assert not relay.engine_side.reads
    relay.client.resume_writing()
    assert relay.engine_side.reads


def test_a_client_is_not_read_while_it_is_too_far_ahead_of_its_answers() -> None:
    relay = InMemoryRelay()
    relay.client.data_received(REQUEST)
    relay.client.data_received(REQUEST * 5000)
    assert not relay.client_side.reads
    relay.engine.data_received(ANSWER + b"world")
    assert len(relay.access.asked) == 2
    assert not relay.client_side.reads, "all but one request wait again"


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST_EVENT = b"9\r\ndata: 1\n\n\r\n"


@pytest.mark.parametrize("first_noticed", ["the exit", "the lost connection, then the exit", "the lost connection"])
def test_an_engine_that_dies_in_mid_stream_has_one_code(first_noticed: str) -> None:
    relay = InMemoryRelay()
    relay.access.alive = None
    relay.client.data_received(REQUEST)
    relay.engine.data_received(STREAM + FIRST_EVENT)
    if first_noticed != "the exit":
        relay.engine.connection_lost(None)
        assert relay.client_side.written.endswith(FIRST_EVENT), "it is not known yet whether the engine lives"
    if first_noticed == "the lost connection":
        relay.access.reports[0](False)
        assert relay.access.ended == [(1, Outcome.BROKEN)]
    else:
        relay.access.revoke(1, EngineDied("m"))
        assert relay.access.ended == []
    after = relay.client_side.written
    assert b'"code":"engine_died"' in after
    for report in relay.access.reports:
        report(False)
    assert relay.client_side.written == after
    assert relay.access.problems == []


def test_a_client_that_leaves_while_the_end_of_its_engine_is_looked_into() -> None:
    relay = InMemoryRelay()
    relay.access.alive = None
    relay.client.data_received(REQUEST)
    relay.engine.data_received(STREAM + FIRST_EVENT)
    relay.engine.connection_lost(None)
    relay.client.connection_lost(None)
    relay.access.reports[0](False)
    assert relay.access.ended == [(1, Outcome.CLIENT_GONE)]


def test_the_progress_of_an_answer_is_its_own_and_unknown_while_it_is_not_read() -> None:
    relay = InMemoryRelay()
    for number in range(2):
        relay.client.data_received(REQUEST)
        holder = relay.access.asked[number].holder
        assert holder.progress() == (False, 0)
        relay.engine.data_received(ANSWER)
        assert holder.progress() == (True, 6)
        relay.client.pause_writing()
        assert holder.progress() is None
        relay.client.resume_writing()
        relay.engine.data_received(b"world")


@pytest.mark.parametrize("streams", [False, True])
def test_a_request_whose_engine_died_after_the_head_of_its_answer_is_sent_again_with_its_body(streams: bool) -> None:
    body = b'{"model":"m","stream":true}' if streams else b'{"model":"m"}'
    relay = InMemoryRelay()
    relay.client.data_received(post(body))
    relay.engine.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    relay.engine.connection_lost(None)
    assert [number for number, _ in relay.access.given_back] == [1]
    relay.connect_engine()
    relay.access.admit(1)
    assert relay.engine_side.written.endswith(b"\r\n\r\n" + body)
    relay.engine.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
    assert relay.client_side.written.endswith(b"\r\n\r\n1\r\nx\r\n0\r\n\r\n")
    assert relay.access.ended == [(1, Outcome.COMPLETED)]
