"""What the gateway refuses (framing, paths, sizes, stalls, keys), its limits, handing over, and shutdown."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from llmux.access import Outcome
from llmux.core.request import Priority
from llmux.gateway import GatewayOptions
from tests.support.gateway import Bench, EngineSide, Message, get, post, running_gateway

BODY = b'{"model":"m"}'


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


def code(answer: Message) -> str:
    assert answer.get("x-llmux-error") == b"1"
    assert answer.get("content-type") == b"application/json"
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["code"])


POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
MALFORMED = {
    "garbage": b"\x16\x03\x01 hello\r\n\r\n",
    "lengths and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "plus": POST + b"Content-Length: +2\r\n\r\n{}",
    "hexadecimal length": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "huge length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "folded header": POST + b"X-A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
    "space before colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "bare line feeds": b"GET /health HTTP/1.1\nHost: x\n\r\n\r\n",
    "zero byte": POST + b"X-A: \x00\r\n\r\n",
    "bare carriage return": POST + b"X-A: b\rc\r\n\r\n",
    "other coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "version 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version 0.9": b"GET /health HTTP/0.9\r\nHost: a\r\n\r\n",
    "unknown method": b"FROB /health HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces": b"GET  /health HTTP/1.1\r\nHost: a\r\n\r\n",
    "chunk size with sign": POST + b"Transfer-Encoding: chunked\r\n\r\n+d\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk size with prefix": POST + b"Transfer-Encoding: chunked\r\n\r\n0xd\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk size empty": POST + b"Transfer-Encoding: chunked\r\n\r\n\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk too long": POST + b"Transfer-Encoding: chunked\r\n\r\nc\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk ends in line feed": POST + b"Transfer-Encoding: chunked\r\n\r\nd\n" + BODY + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", list(MALFORMED))
async def test_ambiguous_framing_is_refused_and_the_connection_closed(name: str) -> None:
    async with running_gateway() as bench:
        client = await bench.client()
        client.send(MALFORMED[name])
        answer = await client.answer()
        assert (answer.status, code(answer)) == (400, "malformed_request")
        assert answer.get("connection") == b"close"
        assert await client.rest() == b""
        assert bench.access.asked == []


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/sleep", 403, "path_forbidden"),
        ("/sleep?level=1", 403, "path_forbidden"),
        ("/wake_up", 403, "path_forbidden"),
        ("/collective_rpc", 403, "path_forbidden"),
        ("/reset_prefix_cache", 403, "path_forbidden"),
        ("/update_weights_from_disk", 403, "path_forbidden"),
        ("/upstream/m/sleep", 403, "path_forbidden"),
        ("/upstream/m/pause", 403, "path_forbidden"),
        ("/%73leep", 403, "path_forbidden"),
        ("/upstream/m/%73leep", 403, "path_forbidden"),
        ("/v1/sleep", 403, "path_forbidden"),
        ("/v1/../sleep", 400, "malformed_request"),
        ("/v1/%2e%2e/sleep", 400, "malformed_request"),
        ("/v1/.%2e/sleep", 400, "malformed_request"),
        ("/v1/..%2fsleep", 400, "malformed_request"),
        ("/v1%2f..%2fsleep", 400, "malformed_request"),
        ("/v1/%252e%252e/sleep", 400, "malformed_request"),
        ("/v1/..%5csleep", 400, "malformed_request"),
        ("/v1/./completions", 400, "malformed_request"),
        ("//sleep", 400, "malformed_request"),
        ("/v1//sleep", 400, "malformed_request"),
        ("/upstream/m//sleep", 400, "malformed_request"),
        ("/upstream/m/v1/../sleep", 400, "malformed_request"),
        ("/upstream/m/../../sleep", 400, "malformed_request"),
        ("/upstream/nope/v1/completions", 404, "model_not_found"),
        ("/upstream/m", 404, "unknown_path"),
        ("/upstream/m/metrics", 404, "unknown_path"),
        ("/control/status", 404, "unknown_path"),
        ("/metrics", 404, "unknown_path"),
        ("/", 404, "unknown_path"),
        ("/docs", 404, "unknown_path"),
        ("/v10/completions", 404, "unknown_path"),
        ("http://evil/sleep", 403, "path_forbidden"),
        ("*", 404, "unknown_path"),
    ],
)
async def test_paths_that_are_not_forwarded(path: str, status: int, error: str) -> None:
    async with running_gateway() as bench:
        for request in (get(path, "model-override: m"), post(BODY, path=path)):
            answer = await bench.ask(request)
            assert (answer.status, code(answer)) == (status, error)
        assert bench.engine.seen == []


@pytest.mark.parametrize("path", ["/tokenize", "/rerank", "/inference/v1/generate", "/v2/embed", "/upstream/m/pooling"])
async def test_inference_paths_are_forwarded(path: str) -> None:
    async with running_gateway() as bench:
        assert (await bench.ask(post(BODY, path=path))).body == BODY
        assert bench.engine.seen[0].start == f"POST {path.removeprefix('/upstream/m')} HTTP/1.1".encode()


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "missing_model"),
        (b"{}", 400, "missing_model"),
        (b'{"model":""}', 400, "missing_model"),
        (b'{"model":null}', 400, "missing_model"),
        (b'{"model":5}', 400, "malformed_request"),
        (b"[1]", 400, "malformed_request"),
        (b"not json", 400, "invalid_json"),
        (b'{"model":"m"', 400, "invalid_json"),
        (b'{"model":"m"} x', 400, "invalid_json"),
        (b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "invalid_json"),
        (b'{"x":{"model":"m"}}', 400, "missing_model"),
        (b'{"model":"nope"}', 404, "model_not_found"),
    ],
)
async def test_bodies_without_a_usable_model(body: bytes, status: int, error: str) -> None:
    async with running_gateway() as bench:
        client = await bench.client()
        client.send(post(body))
        answer = await client.answer()
        assert (answer.status, code(answer)) == (status, error)
        client.send(post(BODY))
        assert (await client.answer()).body == BODY


async def test_upgrades_are_refused() -> None:
    async with running_gateway() as bench:
        fields = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"]
        answer = await bench.ask(get("/v1/realtime", *fields))
        assert (answer.status, code(answer)) == (501, "upgrade_not_supported")
        answer = await bench.ask(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n")
        assert answer.status == 501
        answer = await bench.ask(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert answer.status == 501


@pytest.mark.parametrize("offer", ["TLS/1.0", "h2c, websocket", "h2c", "foo/2", "websocket/13"])
async def test_offers_of_other_protocols_are_ignored(offer: str) -> None:
    """As by nginx and HAProxy: a client that offers goes on without the upgrade. One for a WebSocket alone cannot."""
    async with running_gateway() as bench:
        client = await bench.client()
        for _ in range(2):
            client.send(post(BODY, "Connection: Upgrade", f"Upgrade: {offer}"))
            assert (await client.answer()).body == BODY
        assert bench.engine.seen[0].get("upgrade") is None


async def test_an_offer_of_h2c_is_ignored() -> None:
    """Java's HttpClient makes it with its first request."""
    fields = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAA"]
    async with running_gateway() as bench:
        client = await bench.client()
        client.send(post(BODY, *fields), post(BODY, *fields), post(BODY))
        for _ in range(3):
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, BODY)
        for seen in bench.engine.seen:
            assert (seen.get("upgrade"), seen.get("http2-settings"), seen.get("connection")) == (None, None, None)
        chunked = b"Transfer-Encoding: chunked\r\n" + "\r\n".join(fields).encode() + b"\r\n\r\n"
        client.send(POST + chunked + b"d\r\n" + BODY + b"\r\n0\r\n\r\n", post(BODY))
        for _ in range(2):
            assert (await client.answer()).body == BODY


async def test_api_keys() -> None:
    async with running_gateway(options=GatewayOptions(api_keys=frozenset(("one", "two")))) as bench:
        for fields in ([], ["Authorization: Bearer three"], ["Authorization: Basic one"], ["X-Api-Key: three"]):
            answer = await bench.ask(post(BODY, *fields))
            assert (answer.status, code(answer)) == (401, "invalid_api_key")
        assert (await bench.ask(get("/v1/models"))).status == 401
        assert (await bench.ask(get("/health"))).status == 200
        for fields in (["Authorization: Bearer one"], ["authorization: bearer  two"], ["X-Api-Key: two"]):
            assert (await bench.ask(post(BODY, *fields))).status == 200
        assert len(bench.engine.seen) == 3


async def test_sizes_are_limited() -> None:
    options = GatewayOptions(max_head_bytes=1000, max_body_bytes=5000)
    async with running_gateway(options=options) as bench:
        large = await bench.client()
        large.send(post(b"x" * 5001))
        answer = await large.answer()
        assert (answer.status, code(answer)) == (413, "request_too_large")
        assert await large.rest() == b""

        chunked = await bench.client()
        chunked.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(6):
            chunked.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        assert (await chunked.answer()).status == 413

        for head in (get("/health", "X: " + "x" * 1000), b"GET /health HTTP/1.1\r\nX: " + b"x" * 1000):
            answer = await bench.ask(head)
            assert (answer.status, code(answer)) == (431, "headers_too_large")
        assert (await bench.ask(post(b'{"model":"m","x":"%b"}' % (b"y" * 4000)))).status == 200


async def test_refusal_of_an_upload_can_be_read_while_it_is_being_sent() -> None:
    async with running_gateway(options=GatewayOptions(max_body_bytes=1000)) as bench:
        client = await bench.client()
        client.send(POST + b"Content-Length: 5000000\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 413
        client.send(b"x" * 5_000_000)
        await client.writer.drain()
        assert await client.rest() == b""


async def test_connections_are_limited() -> None:
    async with running_gateway(options=GatewayOptions(max_connections=2)) as bench:
        for _ in range(2):
            client = await bench.client()
            client.send(get("/health"))
            await client.answer()
        refused = await bench.client()
        answer = await refused.answer()
        assert (answer.status, code(answer)) == (429, "queue_full")
        assert answer.get("retry-after") is not None
        assert b"ulimit -n" in answer.body and b"max_connections" not in answer.body, "there is no such key"


FLOODS = {
    "answers": get("/health", "X-Request-Id: flood") * 4000,
    "errors": get("/nowhere", "X-Request-Id: flood") * 4000,
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"2\r\n  \r\n" * 100_000 + b"0\r\n\r\n"),
    "headers": (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 200 + b"\r\n") * 2000,
}


@pytest.mark.parametrize("name", list(FLOODS))
async def test_others_are_served_while_one_client_floods(name: str) -> None:
    async with running_gateway() as bench:
        flooding, other = await bench.client(), await bench.client()
        other.send(get("/health"))
        await other.answer()
        flooding.send(FLOODS[name], get("/ready", "Connection: close"))
        async with asyncio.TaskGroup() as tasks:
            flood = tasks.create_task(flooding.rest())
            for _ in range(5):
                other.send(get("/health"))
                assert (await other.answer()).status == 200
            assert not flood.done()
        assert b"HTTP/1.1 200 OK" in flood.result()[-300:]


async def test_slow_requests_time_out() -> None:
    options = GatewayOptions(
        head_timeout_seconds=0.2, body_idle_timeout_seconds=0.2, client_keep_alive_seconds=0.2, linger_seconds=0.2
    )
    async with running_gateway(options=options) as bench:
        head = await bench.client()
        head.send(b"GET /health HT")
        body = await bench.client()
        body.send(POST + b"Content-Length: 100\r\n\r\n{")
        idle = await bench.client()
        idle.send(get("/health"))
        silent = await bench.client()
        assert ((await head.answer()).status, (await body.answer()).status) == (408, 408)
        assert (await idle.answer()).status == 200
        assert await idle.rest() == b""
        assert await silent.rest() == b""
        assert bench.gateway.connection_count <= 2


async def test_queued_request_has_no_connection_deadline() -> None:
    options = GatewayOptions(head_timeout_seconds=0.05, body_idle_timeout_seconds=0.05, client_keep_alive_seconds=0.05)
    async with running_gateway(options=options) as bench:
        client = await bench.client()
        client.send(post(b'{"model":"cold"}'))
        idle = await bench.client()
        assert await idle.rest() == b""
        bench.access.awake["cold"] = bench.engine.upstream
        bench.access.admit(1)
        assert (await client.answer()).status == 200


async def test_client_that_never_reads_is_cut_off() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        while True:
            engine.chunk(b"x" * 65536)
            await engine.writer.drain()

    async with running_gateway(script, options=GatewayOptions(client_stall_timeout_seconds=0.3)) as bench:
        client = await bench.client(buffer_bytes=2**10)
        client.send(post(BODY))
        await bench.access.until(lambda: bench.access.ended == [(1, Outcome.CLIENT_GONE)])


async def test_idle_engine_connections_expire() -> None:
    async with running_gateway() as bench:
        bench.access.awake["m"] = replace(bench.engine.upstream, keep_alive_seconds=0.1)
        assert (await bench.ask(post(BODY))).status == 200
        async with asyncio.timeout(5):
            await bench.engine.connections[0].closed.wait()
        assert (await bench.ask(post(BODY))).status == 200
        assert len(bench.engine.connections) == 2


async def test_pipelining_is_bounded() -> None:
    async with running_gateway(options=GatewayOptions(max_pipelined_bytes=10_000)) as bench:
        client = await bench.client()
        client.send(post(b'{"model":"cold"}'))
        await bench.access.until(lambda: len(bench.access.waiting) == 1)
        request = get("/health")
        count = 6_000_000 // len(request)
        client.send(request * count)
        bench.access.awake["cold"] = bench.engine.upstream
        assert client.writer.transport.get_write_buffer_size() > 0
        bench.access.admit(1)
        assert (await client.answer()).body == b'{"model":"cold"}'
        for _ in range(1000):
            assert (await client.answer()).body == b'{"status":"ok"}'


async def test_answers_do_not_accumulate_for_a_client_that_does_not_read() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.answer(b"x" * 100_000)

    options = GatewayOptions(client_stall_timeout_seconds=0.3)
    async with running_gateway(script, options=options) as bench:
        client = await bench.client(buffer_bytes=2**10)
        client.send(post(BODY) * 1000)
        await bench.access.until(lambda: len(bench.access.ended) > 0)
        async with asyncio.timeout(10):
            while bench.gateway.connection_count:
                await asyncio.sleep(0.01)
        assert 0 < len(bench.access.ended) < 200
        assert not bench.access.leases


async def test_shutdown_closes_idle_connections_and_lets_answers_end() -> None:
    go_on = asyncio.Event()

    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        engine.chunk(b"data: 1\n\n")
        await go_on.wait()
        engine.end_stream()

    async with running_gateway(script) as bench:
        idle, busy, late = [await bench.client() for _ in range(3)]
        idle.send(get("/health"))
        await idle.answer()
        busy.send(post(BODY))
        await busy.read_head()
        assert await busy.chunk() == b"data: 1\n\n"
        late.send(post(BODY)[:-1])
        await asyncio.sleep(0)
        late.send(b"")
        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(bench.gateway.close(5.0))
            assert await idle.rest() == b""
            assert not closing.done()
            go_on.set()
            assert await busy.chunk() == b""
            assert await busy.rest() == b""
            await late.close()
        assert bench.gateway.connection_count == 0
        with pytest.raises(OSError, match="onnect"):
            await asyncio.open_connection("127.0.0.1", bench.port)


async def test_shutdown_aborts_answers_after_its_deadline() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.begin_stream()
        await engine.until_closed()

    async with running_gateway(script) as bench:
        client = await bench.client()
        client.send(post(BODY))
        await client.read_head()
        await bench.gateway.close(0.05)
        assert bench.access.ended == [(1, Outcome.CLIENT_GONE)]
        assert bench.gateway.connection_count == 0


async def test_small_packets_are_not_delayed() -> None:
    async with running_gateway() as bench:
        client = await bench.client()
        client.send(post(BODY))
        await client.answer()
        ours = [connection._transport for connection in bench.gateway._state.connections]
        pool = bench.gateway._pools.of(bench.engine.upstream)
        ours += [connection._transport for connection in pool.idle]
        assert len(ours) == 2
        for transport in ours:
            assert transport is not None
            assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@asynccontextmanager
async def with_control() -> AsyncIterator[Bench]:
    async def show(request: web.Request) -> web.Response:
        return web.json_response({"peer": request.remote, "body": await request.text(), "path": request.path_qs})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", show)
    runner = web.AppRunner(application)
    await runner.setup()
    server = runner.server
    assert server is not None
    try:
        async with running_gateway(options=GatewayOptions(control_protocol_factory=server)) as bench:
            yield bench
    finally:
        await runner.cleanup()


async def test_control_connections_are_handed_over() -> None:
    async with with_control() as bench:
        client = await bench.client()
        client.send(get("/health"))
        assert (await client.answer()).status == 200
        client.send(post(BODY))
        assert (await client.answer()).body == BODY
        request = post(b'{"mode":"auto"}', path="/control/mode?x=1")
        client.send(request[:-5])
        await bench.access.until(lambda: bench.gateway.connection_count <= 1)
        client.send(request[-5:])
        answer = await client.answer()
        assert json.loads(answer.body) == {"peer": "127.0.0.1", "body": '{"mode":"auto"}', "path": "/control/mode?x=1"}
        assert answer.get("connection") == b"close"
        assert await client.rest() == b""
        assert bench.gateway.connection_count == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/metrics"),
        get("/"),
        post(b"{}", path="/control/unpin"),
        b"POST /control/unpin HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("later", [False, True])
async def test_what_follows_a_control_request_is_dropped(request_bytes: bytes, later: bool) -> None:
    async with with_control() as bench:
        client = await bench.client()
        client.send(request_bytes + (b"" if later else get("/metrics") + b"garbage"))
        if later:
            client.send(get("/metrics"), b"garbage")
        with capture_logs() as logs:
            answer = await client.answer()
        assert (answer.status, answer.get("connection")) == (200, b"close")
        assert json.loads(answer.body)["body"] == ("{}" if request_bytes.startswith(b"POST") else "")
        with suppress(ConnectionError):
            assert await client.rest() == b""
        assert logs == []


async def test_a_control_request_may_expect_to_be_told_to_continue() -> None:
    async with with_control() as bench:
        client = await bench.client()
        client.send(post(b"{}", "Expect: 100-continue", path="/control/unpin")[:-2])
        assert (await client.read_head()).status == 100
        client.send(b"{}")
        assert json.loads((await client.answer()).body)["body"] == "{}"


@pytest.mark.parametrize("path", ["/", "/metrics", "/control/status", "/control"])
async def test_control_paths(path: str) -> None:
    async with with_control() as bench:
        answer = await bench.ask(get(path))
        assert json.loads(answer.body)["path"] == path
        assert bench.access.asked == []


async def test_pipelined_control_request_is_handed_over_in_order() -> None:
    async with with_control() as bench:
        client = await bench.client()
        client.send(post(b'{"model":"cold"}') + get("/control/status"))
        await bench.access.until(lambda: len(bench.access.waiting) == 1)
        bench.access.awake["cold"] = bench.engine.upstream
        bench.access.admit(1)
        assert (await client.answer()).body == b'{"model":"cold"}'
        assert json.loads((await client.answer()).body)["path"] == "/control/status"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["X-Api-Key: person"], Priority.INTERACTIVE),
        (["X-Api-Key: person", "x-llmux-priority: batch"], Priority.BATCH),
        (["X-Api-Key: person", "X-LLMUX-Priority: Interactive"], Priority.INTERACTIVE),
        (["Authorization: Bearer job"], Priority.BATCH),
        (["Authorization: Bearer job", "x-llmux-priority: interactive"], Priority.BATCH),
    ],
)
async def test_priority_is_the_keys_or_a_lower_one_that_was_asked_for(fields: list[str], expected: Priority) -> None:
    options = GatewayOptions(api_keys=frozenset(("person",)), batch_api_keys=frozenset(("job",)))
    async with running_gateway(options=options) as bench:
        client = await bench.client()
        for _ in range(2):
            client.send(post(BODY, *fields))
            assert (await client.answer()).status == 200
        assert [asked.request.priority for asked in bench.access.asked] == [expected, expected]
        assert bench.engine.seen[0].get("x-llmux-priority") is None


async def test_unknown_priorities_are_refused_and_known_ones_need_no_key() -> None:
    async with running_gateway() as bench:
        assert (await bench.ask(post(BODY, "x-llmux-priority: batch"))).status == 200
        answer = await bench.ask(post(BODY, "x-llmux-priority: urgent"))
        assert (answer.status, b"interactive or batch" in answer.body) == (400, True)
        assert [asked.request.priority for asked in bench.access.asked] == [Priority.BATCH]
