"""Fields that an engine must find in a body to answer with the weights that were asked for, as llama.cpp's adapters."""

import json
from typing import Any

import pytest

from llmux.core.names import ModelName, NameKind, register
from llmux.engines.llama_cpp import LlamaCpp
from llmux.gateway import pieces
from llmux.gateway.engine_paths import EngineRules
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.large_bodies import LARGE_JSON_BYTES, UnreadBody, read_large
from llmux.gateway.options import DEFAULT_CONTROL_PATHS
from llmux.gateway.routing import EngineCall, Router, find_model

NONE, SQL = {"lora": [{"id": 0, "scale": 0.0}]}, {"lora": [{"id": 0, "scale": 1.0}]}
NAMES = register(
    [
        ModelName("base", "base", "base", added_fields=NONE),
        ModelName("gpt-4", "base", "base", NameKind.ALIAS, added_fields=NONE),
        ModelName("sql", "base", "sql", NameKind.ADAPTER, added_fields=SQL),
        ModelName("plain", "plain", "plain"),
    ]
)
ENGINES = {name: EngineRules("llama_cpp", LlamaCpp.rules) for name in ("base", "plain")}
SHORT = b"[1, 2.50]"
LONG = json.dumps("x" * LARGE_JSON_BYTES).encode()
WAYS = [
    pytest.param(b'{"model":"base","prompt":%b}', "", "base", NONE, id="the model"),
    pytest.param(b'{"prompt":%b,"model":"gpt-4"}', "", "base", NONE, id="an alias"),
    pytest.param(b'{"model":"sql","prompt":%b}', "", "sql", SQL, id="an adapter"),
    pytest.param(b'{"prompt":%b}', "sql", "sql", SQL, id="an adapter in the header alone"),
    pytest.param(b'{"prompt":%b}', "base", None, NONE, id="the model in the header alone"),
    pytest.param(b'{"model":"sql","prompt":%b}', "base", "sql", SQL, id="an adapter of the model in the header"),
    pytest.param(b'{"model":"base","prompt":%b}', "sql", "sql", SQL, id="the header goes first"),
    pytest.param(b'{"lora":[{"id":7}],"model":"sql","prompt":%b,"LoRA":[]}', "", "sql", SQL, id="the client's own"),
    pytest.param(b' { "model" : "sql" , "prompt" : %b } ', "", "sql", SQL, id="spaces"),
    pytest.param(b'\xef\xbb\xbf{"model":"sql","prompt":%b}', "", "sql", SQL, id="a byte order mark"),
    pytest.param(b'{"model":"sql","prompt":%b,"x":NaN}', "", "sql", SQL, id="what only Python reads"),
    pytest.param(b'{"model":"plain","prompt":%b}', "", "plain", {}, id="a model without adapters"),
]


def call(body: bytes, override: str) -> EngineCall:
    head = RequestHead()
    fields = ["POST /v1/completions HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    fields += ["Content-Type: application/json", *([f"model-override: {override}"] if override else [])]
    head.parse("\r\n".join([*fields, "", ""]).encode())
    route = Router(DEFAULT_CONTROL_PATHS, lambda: NAMES, (), ENGINES).find(head.path)
    if len(body) < LARGE_JSON_BYTES:
        return find_model(head, route, body, NAMES)
    return read_large(head, route, UnreadBody(body, None), NAMES, 1 << 30)


def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(members) == len(dict(members)), f"a field comes twice: {members}"
    return dict(members)


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["small", "large"])
@pytest.mark.parametrize(("body", "override", "model", "added"), WAYS)
def test_the_engine_finds_them_once_and_all_else_as_it_was(
    body: bytes, override: str, model: str | None, added: dict[str, Any], prompt: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "pause", lambda: None)
    found = call(body % prompt, override)
    assert found.model == ("plain" if model == "plain" else "base")
    sent = json.loads(bytes(found.body).decode("utf-8-sig"), object_pairs_hook=pairs)
    assert sent.pop("x", 0) == 0 or b"NaN" in body
    assert sent == {"prompt": json.loads(prompt), **({"model": model} if model else {}), **added}


def test_a_kind_that_adds_fields_takes_the_clients_own_out() -> None:
    assert "lora" in LlamaCpp.rules.removed_fields
