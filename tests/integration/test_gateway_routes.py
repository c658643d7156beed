"""What is judged by its path, method and type alone: refused before any model is woken, with the GPU as it was."""

import json

import pytest

from llmux.core.names import ModelName, NameKind
from llmux.gateway import GatewayOptions
from tests.support.access import FakeAccess
from tests.support.gateway import Message, get, post, running_gateway

COLD = b'{"model":"cold","messages":[]}'
CHAT = "/v1/chat/completions"


def code(answer: Message) -> str:
    assert answer.get("x-llmux-error") == b"1"
    assert answer.get("x-llmux-switch-ms") is None
    return str(json.loads(answer.body)["error"]["code"])


def typed(content_type: str, body: bytes = COLD, *fields: str, path: str = CHAT, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *fields, "", ""]).encode() + body


UNKNOWN = [
    "/v1/v1/chat/completions",
    "/upstream/cold/v1/v1/chat/completions",
    "/v1/nonsense",
    "/v2/nonsense",
    "/inference/v1/x",
    "/cohere/v1/chat",
    "/v1/files",
    "/v1/batches",
    "/v1/moderations",
    "/v1/health",
    "/v1/engines/x/chat/completions",
    "/upstream/cold/v1/files",
    "/upstream/cold/nonsense",
    "/files",
]


@pytest.mark.parametrize("path", UNKNOWN)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_an_unknown_path_wakes_nothing(path: str, method: str) -> None:
    async with running_gateway() as bench:
        for fields in ([], ["model-override: cold"]):
            answer = await bench.ask(typed("application/json", COLD, *fields, path=path, method=method))
            assert (answer.status, code(answer)) == (404, "unknown_path")
        assert not any(asked.request.may_wake for asked in bench.access.asked)


@pytest.mark.parametrize("path", [CHAT, f"/upstream/cold{CHAT}", "/chat/completions", "/rerank/"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_a_method_that_engines_refuse_wakes_nothing(path: str, method: str) -> None:
    async with running_gateway() as bench:
        client = await bench.client()
        client.send(get(path, "model-override: cold", method=method))
        answer = await client.answer(to_head=method == "HEAD")
        assert (answer.status, answer.get("allow")) == (405, b"POST")
        if method != "HEAD":
            client.send(typed("application/json", path=path, method=method))
            answer = await client.answer()
            assert (answer.status, code(answer)) == (405, "method_not_allowed")
        assert bench.access.asked == []


@pytest.mark.parametrize("fields", [[], ["model-override: cold"]])
@pytest.mark.parametrize("path", [CHAT, f"/upstream/cold{CHAT}"])
@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=B", ""]
)
async def test_a_body_of_another_type_wakes_nothing(content_type: str, path: str, fields: list[str]) -> None:
    async with running_gateway() as bench:
        answer = await bench.ask(typed(content_type, COLD, *fields, path=path))
        assert (answer.status, code(answer)) == (415, "unsupported_media_type")
        assert "application/json" in json.loads(answer.body)["error"]["message"]
        assert bench.access.asked == []


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b'{"model":5}', b'{"model":"a","\xff":1}'])
async def test_a_body_that_engines_refuse_wakes_nothing(body: bytes) -> None:
    async with running_gateway() as bench:
        for request in (post(body, "model-override: cold"), post(body, path=f"/upstream/cold{CHAT}")):
            answer = await bench.ask(request)
            assert answer.status == 400
            assert code(answer) in ("invalid_json", "malformed_request")
        assert bench.access.asked == []


@pytest.mark.parametrize(
    ("content_type", "forwarded"),
    [
        ("application/json", b"application/json"),
        ("Application/JSON; charset=utf-8", b"Application/JSON; charset=utf-8"),
        ("application/json ; charset=utf-8", b"application/json"),
        ("application/problem+json", b"application/json"),
    ],
)
async def test_json_is_forwarded_by_a_type_that_vllm_takes(content_type: str, forwarded: bytes) -> None:
    async with running_gateway() as bench:
        body = b'{"model":"m","text":"\\r\\ncontent-type: x"}'
        client = await bench.client()
        for _ in range(2):
            client.send(typed(content_type, body, "X-After: content-type: x"))
            assert (await client.answer()).body == body
            seen = bench.engine.seen[-1]
            assert (seen.get("content-type"), seen.get("x-after")) == (forwarded, b"content-type: x")


async def test_an_unknown_path_reaches_a_model_that_serves() -> None:
    async with running_gateway() as bench:
        body = b'{"model":"m"}'
        assert (await bench.ask(post(body, path="/v1/own/"))).body == body
        assert (await bench.ask(get("/v1/state?model=m"))).status == 200
        assert (await bench.ask(get("/upstream/m/v1/state"))).status == 200
        assert [seen.start for seen in bench.engine.seen] == [
            b"POST /v1/own HTTP/1.1",
            b"GET /v1/state?model=m HTTP/1.1",
            b"GET /v1/state HTTP/1.1",
        ]
        answer = await bench.ask(get("/upstream/cold/v1/state"))
        assert (answer.status, code(answer)) == (503, "model_not_loaded")
        answer = await bench.ask(post(COLD, path="/v1/own"))
        assert (answer.status, code(answer)) == (404, "unknown_path")
        assert "inference_paths" in json.loads(answer.body)["error"]["message"]


async def test_a_listed_path_wakes_its_model() -> None:
    async with running_gateway(options=GatewayOptions(inference_paths=("/v1/own", "/generate"))) as bench:
        for path in ("/v1/own", "/own/", "/upstream/cold/generate"):
            client = await bench.client()
            client.send(typed("text/plain", b"x", "model-override: cold", path=path))
        await bench.access.until(lambda: len(bench.access.waiting) == 3)
        assert all(asked.request.may_wake for asked in bench.access.asked)


@pytest.mark.parametrize(
    "path",
    ["/v1/", "/v1/state", "/v1/files", "/v1/health", "/v1/audio/voices", "/v1/v1/models", "/v1", "/v1/x?model=no"],
)
async def test_a_get_of_an_unknown_path_is_told_so(path: str) -> None:
    async with running_gateway() as bench:
        answer = await bench.ask(get(path))
        assert (answer.status, code(answer)) == (404, "unknown_path")
        assert "/v1" in json.loads(answer.body)["error"]["message"]


async def test_a_stored_response_needs_a_model() -> None:
    async with running_gateway() as bench:
        for method in ("GET", "DELETE"):
            answer = await bench.ask(get("/v1/responses/resp_1", method=method))
            assert (answer.status, code(answer)) == (400, "missing_model")
            assert "?model=MODEL" in json.loads(answer.body)["error"]["message"]
            assert (await bench.ask(get("/v1/responses/resp_1?model=m", method=method))).status == 200
        answer = await bench.ask(get("/v1/responses/resp_1", method="PUT"))
        assert (answer.status, answer.get("allow")) == (405, b"GET, HEAD, DELETE")
        assert (await bench.ask(get("/v1/responses/resp_1/cancel?model=m", method="POST"))).status == 200
        assert not any(asked.request.may_wake for asked in bench.access.asked)


@pytest.mark.parametrize("base", ["/v1", "/v1/", "/", "", "//", "/upstream/m/v1", "/upstream/m", "/upstream/m/"])
async def test_every_base_url_leads_to_the_engines_path(base: str) -> None:
    async with running_gateway() as bench:
        body = b'{"model":"m"}'
        for path in ("chat/completions", "completions", "embeddings", "responses", "messages", "chat/completions/"):
            assert (await bench.ask(post(body, path=f"{base}/{path}"))).body == body
            assert bench.engine.seen[-1].start == f"POST /v1/{path.removesuffix('/')} HTTP/1.1".encode()
        assert (await bench.ask(get(f"{base}/models"))).status == 200


async def test_aliases_and_adapters() -> None:
    names = (ModelName("alias", "m", "m", NameKind.ALIAS), ModelName("sql", "m", "sql", NameKind.ADAPTER))
    async with running_gateway(access=FakeAccess(further_names=names)) as bench:
        client = await bench.client()
        for asked, sent in (("alias", "m"), ("sql", "sql"), ("alias", "m"), ("m", "m")):
            client.send(post(b'{"model":"%b"}' % asked.encode()))
            assert (await client.answer()).body == b'{"model":"%b"}' % sent.encode()
        assert (await bench.ask(post(b'{"model":"sql"}', path=f"/upstream/alias{CHAT}"))).body == b'{"model":"sql"}'
        assert {asked.request.model for asked in bench.access.asked} == {"m"}
