"""Large bodies: read by a thread, and kept in a file while their requests wait."""

import asyncio
import errno
import gc
import json
import mmap
import tempfile
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from types import FrameType, TracebackType
from typing import Any

import pytest
from structlog.testing import capture_logs

from llmux.access import Outcome
from llmux.errors import RequestError
from llmux.gateway import GatewayOptions, large_bodies, pieces
from llmux.gateway.proxy import model_search
from tests.support.access import FakeAccess
from tests.support.bench import eventually
from tests.support.gateway import Bench, EngineSide, Message, get, post, running_gateway
from tests.support.skips import replaces_compiled_code

OPTIONS = GatewayOptions(spool_bytes=2_000_000)
LARGE = b'{"model":"cold","x":"%b"}' % (b"y" * 3_000_000)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Threads that read a large body wait for this event first."""
    go_on = threading.Event()

    def read(*arguments: Any) -> Any:
        go_on.wait(20)
        return large_bodies.read_large(*arguments)

    monkeypatch.setattr(model_search, "read_large", read)
    yield go_on
    go_on.set()


def is_read(bench: Bench, count: int = 1) -> bool:
    """Whether so many bodies are read by a thread, or wait for one."""
    return sum(one._search is not None for one in bench.gateway._state.connections) == count  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_large_body_waits_in_a_file_without_a_name(is_chunked: bool) -> None:
    async with running_gateway(options=OPTIONS) as bench:
        client = await bench.client()
        if is_chunked:
            fields = b"Host: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            client.send(b"POST /v1/completions HTTP/1.1\r\n" + fields)
            client.send(
                *(
                    b"%x\r\n%b\r\n" % (len(LARGE[at : at + 999]), LARGE[at : at + 999])
                    for at in range(0, len(LARGE), 999)
                )
            )
            client.send(b"0\r\n\r\n")
        else:
            client.send(post(LARGE))
        await bench.access.until(lambda: len(bench.access.waiting) == 1)
        assert bench.access.asked[0].request.size_bytes >= len(LARGE)
        body = bench.access.asked[0].holder._body  # type: ignore[attr-defined]
        assert isinstance(body, memoryview) and isinstance(body.obj, mmap.mmap)
        assert bench.gateway._state.receiving_bytes == 0
        bench.access.awake["cold"] = bench.engine.upstream
        bench.access.admit(1)
        assert (await client.answer()).body == LARGE
        client.send(get("/health"))
        assert (await client.answer()).status == 200
        del body


async def test_a_large_body_can_be_sent_again() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        if len(bench.engine.seen) == 1:
            engine.reset()
        else:
            engine.answer(request.body)

    def grant_again(access: FakeAccess, number: int) -> None:
        access.admit(number)

    body = LARGE.replace(b"cold", b"m")
    async with running_gateway(script, options=OPTIONS, access=FakeAccess(on_give_back=grant_again)) as bench:
        assert (await bench.ask(post(body))).body == body
        assert [len(seen.body) for seen in bench.engine.seen] == [len(body)] * 2


@pytest.mark.parametrize("where", ["opening", "writing", "mapping"])
async def test_without_room_for_a_file_the_body_waits_in_memory(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_error: object) -> None: ...

        def write(self, data: memoryview) -> int:
            fail()
            return len(data)

    match where:
        case "opening":
            monkeypatch.setattr(tempfile, "TemporaryFile", fail)
        case "writing":
            monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_options: Full())
        case _:
            monkeypatch.setattr(mmap, "mmap", fail)
    body = LARGE.replace(b"cold", b"m")
    with capture_logs() as logs:
        async with running_gateway(options=OPTIONS) as bench:
            assert (await bench.ask(post(body))).body == body
    assert ["no space left" in entry["reason"] for entry in logs] == [True]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (LARGE[:-1], 400, "invalid_json"),
        (LARGE.replace(b"model", b"other"), 400, "missing_model"),
        (LARGE.replace(b"cold", b"nope"), 404, "model_not_found"),
    ],
)
async def test_a_large_body_is_refused_like_a_small_one(body: bytes, status: int, code: str) -> None:
    async with running_gateway(options=OPTIONS) as bench:
        client = await bench.client()
        client.send(post(body), get("/health"))
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
        assert (await client.answer()).body == b'{"status":"ok"}'
        assert bench.access.asked == []
        assert bench.gateway._state.receiving_bytes == 0


@pytest.mark.parametrize("size_bytes", [200_000, 1_500_000])
@pytest.mark.parametrize(
    ("begin", "end", "status"),
    [
        (b"", b"", 400),
        (b'{"model":"m","x":"', b'"', 400),
        (b'{"x":"', b'"}', 400),
        (b'{"model":"nope","x":"', b'"}', 404),
    ],
    ids=["no JSON", "broken JSON", "no model", "unknown model"],
)
async def test_a_body_that_is_refused_does_not_wait_for_the_garbage_collector(
    begin: bytes, end: bytes, status: int, size_bytes: int
) -> None:
    """A traceback in a cycle would keep it: megabytes a request, until so many objects are made that it runs."""
    body = begin + b"1" * size_bytes + end
    async with running_gateway() as bench:
        await bench.ask(get("/health"))
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            assert (await bench.ask(post(body))).status == status
            gc.collect()
            kept = [found for found in gc.garbage if isinstance(found, FrameType | TracebackType)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert kept == []


async def test_the_model_in_a_large_body_is_replaced_in_its_place() -> None:
    body = LARGE.replace(b'"x"', b'"u":1.10e5,"x"')
    async with running_gateway(options=OPTIONS) as bench:
        answer = await bench.ask(post(body, path="/upstream/m/v1/completions"))
        assert answer.body == body.replace(b'"cold"', b'"m"')


async def test_a_client_that_leaves_while_its_body_is_read_asks_for_nothing(blocked: threading.Event) -> None:
    async with running_gateway(options=OPTIONS) as bench:
        client = await bench.client()
        client.send(post(LARGE))
        state = bench.gateway._state
        await eventually(lambda: is_read(bench), "a thread reads the body")
        assert state.receiving_bytes == len(LARGE)
        await client.close()
        await eventually(lambda: bench.gateway.connection_count == 0, "the connection is closed")
        assert state.receiving_bytes == len(LARGE), "the thread has it still"
        blocked.set()
        await eventually(lambda: state.receiving_bytes == 0, "the thread is done with it")
        assert (await bench.ask(post(LARGE.replace(b"cold", b"m")))).status == 200
        assert [asked.request.model for asked in bench.access.asked] == ["m"]


MIDDLING = b'{"model":"%b","x":[%bNaN]}'


@pytest.mark.parametrize("path", ["/v1/completions", "/upstream/m/v1/completions"])
async def test_a_middling_body_that_is_slow_to_read_is_read_by_a_thread(path: str, blocked: threading.Event) -> None:
    """Python's parser takes a quarter of a second for one of 1 MB."""
    name = b"other" if path.startswith("/upstream") else b"m"
    body = MIDDLING % (name, b"[]," * 100_000)
    async with running_gateway() as bench:
        client = await bench.client()
        client.send(post(body, path=path), get("/health"))
        await eventually(lambda: is_read(bench), "a thread reads")
        assert (await bench.ask(get("/health"))).status == 200
        blocked.set()
        assert (await client.answer()).body == body.replace(b"other", b"m")
        assert (await client.answer()).body == b'{"status":"ok"}'
        assert bench.gateway._state.receiving_bytes == 0


async def test_a_middling_body_that_is_no_json_is_refused_and_wakes_nothing() -> None:
    body = MIDDLING % (b"cold", b"[]," * 100_000)
    async with running_gateway() as bench:
        answer = await bench.ask(post(body.replace(b"NaN", b"nan")))
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "invalid_json")
        assert bench.access.asked == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be"])
async def test_a_body_in_another_encoding_is_refused_whatever_its_size(encoding: str) -> None:
    async with running_gateway() as bench:
        for path in ("/v1/completions", "/upstream/m/v1/completions"):
            for characters in (1, 20_000, 2_000_000):
                body = json.dumps({"model": "m", "x": "y" * characters}).encode(encoding)
                answer = await bench.ask(post(body, path=path))
                error = json.loads(answer.body)["error"]
                assert (answer.status, error["code"]) == (400, "invalid_json")
                assert f"it is encoded as {encoding[:6].upper()}; send it as UTF-8" in error["message"]
        assert bench.access.asked == []


async def test_a_large_body_that_may_be_anything_is_passed_on() -> None:
    options = GatewayOptions(inference_paths=("/v1/anything",))
    for body in (b"{" * 2_000_000, b'{"":' + b"NaN," * 20_000, b"{" + b'"":0,' * 300_000 + b'"x":0}'):
        async with running_gateway(options=options) as bench:
            answer = await bench.ask(post(body, "model-override: m", path="/v1/anything"))
            assert (answer.status, answer.body) == (200, body)


async def test_bodies_of_clients_that_have_left_are_dropped_before_it_is_their_turn(blocked: threading.Event) -> None:
    async with running_gateway(options=OPTIONS) as bench:
        state = bench.gateway._state
        clients = [await bench.client() for _ in range(4)]
        for client in clients:
            client.send(post(LARGE))
        reading = lambda: [one._search._unread for one in state.connections if one._search]  # type: ignore[attr-defined]  # noqa: E731
        await eventually(lambda: len(reading()) == 4, "all are read or wait for a thread")
        unread = reading()
        for client in clients:
            await client.close()
        await eventually(lambda: bench.gateway.connection_count == 0, "all are closed")
        assert [one.body for one in unread] == [None] * 4
        blocked.set()
        await eventually(lambda: state.receiving_bytes == 0, "the threads are done")
        assert bench.access.asked == []


async def test_a_large_body_that_is_refused_is_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[RequestError]] = []

    def read(*arguments: Any) -> Any:
        try:
            return large_bodies.read_large(*arguments)
        except RequestError as error:
            kept.append(weakref.ref(error))  # Its traceback has the body.
            raise

    monkeypatch.setattr(model_search, "read_large", read)
    gc.disable()
    try:
        async with running_gateway(options=OPTIONS) as bench:
            assert (await bench.ask(post(LARGE.replace(b"cold", b"none")))).status == 404
            assert (await bench.ask(post(LARGE[:-1]))).status == 400
            await eventually(lambda: [error() for error in kept] == [None, None], "the bodies are freed")
    finally:
        gc.enable()


async def test_bodies_for_llmux_itself_are_small() -> None:
    async with running_gateway() as bench:
        for path in ("/health", "/v1/models", "/control/switch"):
            head = post(b"", path=path).replace(b"Content-Length: 0", b"Content-Length: %d" % len(LARGE))
            assert (await bench.ask(head)).status in (404, 413)
            assert bench.gateway._state.receiving_bytes == 0


async def test_others_are_served_while_a_body_is_read(blocked: threading.Event) -> None:
    async with running_gateway(options=OPTIONS) as bench:
        client = await bench.client()
        client.send(post(LARGE.replace(b"cold", b"m")), get("/health"))
        await eventually(lambda: is_read(bench), "a thread reads")
        assert (await bench.ask(get("/health"))).status == 200
        blocked.set()
        assert len((await client.answer()).body) > 3_000_000
        assert (await client.answer()).body == b'{"status":"ok"}'


async def test_a_large_body_does_not_wait_for_the_end_of_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in pieces: beside each of its own there are about two of the others'."""
    done: dict[int, int] = {}
    begins, pause = threading.Event(), pieces.pause

    def count() -> None:
        begins.wait(20)
        done[threading.get_ident()] = done.get(threading.get_ident(), 0) + 1
        pause()

    monkeypatch.setattr(pieces, "pause", count)
    giant = b'{"model":"cold","x":"%b"}' % (b"y" * 20_000_000)
    async with running_gateway(options=GatewayOptions(spool_bytes=2**30)) as bench:
        for body in (giant, giant, giant, LARGE.replace(b"cold", b"m")):
            (await bench.client()).send(post(body))
            arrived = len(bench.clients)
            await eventually(partial(is_read, bench, arrived), "all have arrived")
        begins.set()
        assert (await bench.clients[-1].answer()).status == 200
        assert len(bench.access.asked) == 1, "the others are still being read"
        own, *others = sorted(done.values())
        assert own == len(LARGE) // pieces.PIECE_BYTES
        assert max(others, default=0) < len(giant) // pieces.PIECE_BYTES // 2, done


async def test_an_error_in_the_thread_is_answered_and_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_arguments: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(model_search, "read_large", read)
    with capture_logs() as logs:
        async with running_gateway(options=OPTIONS) as bench:
            client = await bench.client()
            client.send(post(LARGE))
            answer = await client.answer()
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (500, "internal_error")
            assert await client.rest() == b""
    assert [type(entry["exc_info"]) for entry in logs] == [ZeroDivisionError]


async def test_a_gateway_can_be_closed_while_bodies_are_read(blocked: threading.Event) -> None:
    async with running_gateway(options=OPTIONS) as bench:
        for _ in range(4):
            (await bench.client()).send(post(LARGE))
        await eventually(
            lambda: is_read(bench, 4),
            "all bodies have arrived",
        )
        await bench.gateway.close(0.0)
        assert bench.gateway.connection_count == 0
        blocked.set()
        await asyncio.sleep(0)
        assert bench.access.asked == []


@replaces_compiled_code
async def test_a_task_that_fails_ends_its_request_and_not_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*_arguments: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("llmux.gateway.proxy.pool.EnginePool.connect", connect)
    with capture_logs() as logs:
        async with running_gateway() as bench:
            answer = await bench.ask(post(b'{"model":"m"}'))
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (500, "internal_error")
            assert bench.access.ended == [(1, Outcome.BROKEN)]
            assert (await bench.ask(get("/health"))).status == 200
    assert [type(entry["exc_info"]) for entry in logs] == [ZeroDivisionError]
