"""Browsers: preflights, CORS on every answer, and foreign pages where no key is needed."""

import json
from pathlib import Path

import pytest

from llmux.gateway import GatewayOptions
from tests.support.bench import OFFLOAD, serving
from tests.support.gateway import EngineSide, Message, get, post, running_gateway
from tests.support.server import chat

PAGE = "Origin: https://chat.example.org"
FOREIGN = "Origin: http://attacker.example"
ASKS = "Access-Control-Request-Method: POST"
BODY = b'{"model":"m","messages":[]}'
CORS = GatewayOptions(cors_origins=("https://chat.example.org",), api_keys=frozenset(("key",)))
KEY = "Authorization: Bearer key"


def origin_of(answer: Message) -> bytes | None:
    return answer.get("access-control-allow-origin")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/models",
        "/models/m",
        "/upstream/m/v1/messages",
        "/upstream/no/v1/x",
        "/v1/x",
        "/health",
        "/x",
    ],
)
async def test_preflights_are_answered_without_a_key(path: str) -> None:
    async with running_gateway(options=CORS) as bench:
        client = await bench.client()
        for field, allowed in (
            (PAGE, b"https://chat.example.org"),
            (FOREIGN, None),
            (PAGE, b"https://chat.example.org"),
        ):
            client.send(
                get(path, field, ASKS, "Access-Control-Request-Headers: authorization,content-type", method="OPTIONS")
            )
            answer = await client.answer()
            assert (answer.status, origin_of(answer), answer.get("vary")) == (204, allowed, b"Origin")
            assert answer.get("content-length") is None
            assert answer.get("access-control-allow-headers") == (b"authorization,content-type" if allowed else None)
        assert bench.access.asked == []


async def test_every_answer_to_an_allowed_page_says_so() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        if b"stream" in request.body:
            engine.begin_stream()
            engine.chunk(b"data: [DONE]\n\n")
            engine.end_stream()
        else:
            engine.answer(b"{}", fields=b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\n")

    requests = {
        "engine": (post(BODY, KEY), 200),
        "stream": (post(b'{"model":"m","stream":true}', KEY), 200),
        "models": (get("/v1/models", KEY), 200),
        "health": (get("/health"), 200),
        "no key": (post(BODY), 401),
        "no model": (post(b"{}", KEY), 400),
        "unknown path": (get("/v1/x", KEY), 404),
        "method": (get("/v1/chat/completions", KEY), 405),
        "not on the GPU": (get("/upstream/cold/v1/state", KEY), 503),
        "too large": (post(BODY, KEY).replace(b"Content-Length: ", b"Content-Length: 99999999999"), 413),
    }
    async with running_gateway(script, options=CORS) as bench:
        for name, (request, status) in requests.items():
            for field, allowed in ((PAGE, b"https://chat.example.org"), (FOREIGN, None)):
                answer = await bench.ask(request.replace(b"Host: test\r\n", f"Host: test\r\n{field}\r\n".encode()))
                assert (answer.status, origin_of(answer), answer.get("vary")) == (status, allowed, b"Origin"), name
                assert answer.get("access-control-allow-credentials") is None
                exposed = answer.get("access-control-expose-headers")
                assert (exposed is not None and b"x-llmux-queue-ms" in exposed) is (allowed is not None)
            answer = await bench.ask(request)
            assert (answer.status, answer.get("vary")) == (status, None)


async def test_a_page_keeps_its_origin_on_a_repeated_head_and_another_one_gets_its_own() -> None:
    async with running_gateway(
        options=GatewayOptions(cors_origins=("https://a.example", "https://b.example"))
    ) as bench:
        client = await bench.client()
        for page in ("https://a.example", "https://a.example", "https://b.example", None, "https://a.example"):
            client.send(post(BODY, *([f"Origin: {page}"] if page else [])))
            assert origin_of(await client.answer()) == (page.encode() if page else None)


async def test_without_cors_an_engines_own_fields_pass() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.answer(b"{}", fields=b"access-control-allow-origin: *\r\n")

    async with running_gateway(script) as bench:
        assert origin_of(await bench.ask(post(BODY, PAGE))) == b"*"
        answer = await bench.ask(get("/v1/chat/completions", PAGE, ASKS, method="OPTIONS"))
        assert (answer.status, answer.get("allow")) == (405, b"POST")


def with_host(request: bytes, host: str) -> bytes:
    return request.replace(b"Host: test", f"Host: {host}".encode())


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(BODY),
        get("/v1/models"),
        get("/v1/models/m"),
        get("/upstream/nobody/v1/x"),
        get("/nowhere"),
        get("/metrics"),
        get("/"),
    ],
)
async def test_foreign_pages_are_refused_where_no_key_is_needed(request_bytes: bytes) -> None:
    async with running_gateway(options=GatewayOptions(allowed_hosts=("test",))) as bench:
        for foreign, code in (
            (request_bytes.replace(b"Host: test\r\n", f"Host: test\r\n{FOREIGN}\r\n".encode()), "origin_not_allowed"),
            (
                request_bytes.replace(b"Host: test\r\n", b"Host: test\r\nSec-Fetch-Site: cross-site\r\n"),
                "origin_not_allowed",
            ),
            (with_host(request_bytes, "attacker.example"), "host_not_allowed"),
        ):
            answer = await bench.ask(foreign)
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (403, code)
            assert b"nobody" not in answer.body
        assert bench.access.asked == []
        assert (await bench.ask(with_host(get("/health"), "attacker.example"))).status == 200
        assert (await bench.ask(request_bytes)).status != 403


async def test_a_repeated_head_is_no_way_around_the_guard() -> None:
    async with running_gateway(options=GatewayOptions(allowed_hosts=("test",))) as bench:
        client = await bench.client()
        for _ in range(2):
            client.send(post(BODY, FOREIGN))
            assert (await client.answer()).status == 403
            client = await bench.client()
        client.send(post(BODY), post(BODY))
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        client.send(post(BODY, FOREIGN))
        assert (await client.answer()).status == 403


async def test_with_keys_nothing_is_said_before_the_key_is_checked() -> None:
    async with running_gateway(options=GatewayOptions(api_keys=frozenset(("key",)), allowed_hosts=())) as bench:
        for path in ("/upstream/zzz/v1/x", "/upstream/m/v1/x", "/v1/x", "/nowhere", "/v1/../x", "/sleep", "/v1/models"):
            for method in ("GET", "POST", "OPTIONS"):
                answer = await bench.ask(get(path, method=method))
                assert answer.status == 401, (method, path)
                assert b"m," not in answer.body
                assert b"cold" not in answer.body
        assert (await bench.ask(with_host(post(BODY, KEY, FOREIGN), "any.example"))).status == 200


async def test_a_server_guards_its_metrics_and_its_page(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        for path in ("/metrics", "/", "/v1/models"):
            for headers in ({"Host": "attacker.example"}, {"Origin": "http://attacker.example"}):
                assert (await bench.call(f"GET {path}", headers=headers)).status == 403, path
            answer = await bench.call(f"GET {path}")
            assert answer.status == 200
            assert "Server" not in answer.headers
        answer = await bench.call("POST /v1/chat/completions", chat("a", "x"), headers={"Host": "attacker.example"})
        assert (answer.status, answer.code) == (403, "host_not_allowed")
        assert bench.starts("a") == 0


async def test_with_keys_the_main_ports_metrics_need_one(tmp_path: Path) -> None:
    keys = {"api_keys": ["client"], "admin_key": "operator"}
    async with serving({"a": OFFLOAD}, tmp_path, **keys) as bench:
        for key, status in ((None, 401), ("wrong", 401), ("client", 200), ("operator", 200)):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            answer = await bench.call("GET /metrics", headers=headers)
            assert answer.status == status
        assert (await bench.call("GET /")).status == 200
