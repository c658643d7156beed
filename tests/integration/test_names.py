"""Every name of a model reaches its engine, is listed, and stands for the model in commands, metrics and logs."""

import json
from pathlib import Path

from tests.support.bench import OFFLOAD, serving, with_flags
from tests.support.server import chat

QWEN = with_flags(
    {**OFFLOAD, "aliases": ["fast", "org/alias"]}, "--served-model-name", "gpt-4", "mini", "--max-model-len", "8K"
)
BASE = OFFLOAD


async def test_all_names_of_a_model(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with serving({"qwen": QWEN, "base": BASE}, tmp_path, access_log=str(log)) as bench:
        for name in ("qwen", "fast", "gpt-4", "mini", "models/qwen", "org/alias"):
            answer = await bench.call("POST /v1/chat/completions", chat(name, "hello"))
            assert answer.status == 200, (name, answer.text)
            answer = await bench.call(f"POST /upstream/{name}/v1/chat/completions", chat("base", "hello"))
            assert answer.status == 200, (name, answer.text)
        assert (bench.starts("qwen"), bench.starts("base")) == (1, 0)

        document = (await bench.call("GET /v1/models")).document
        listed = {entry["id"]: entry for entry in document["data"]}
        assert list(listed) == ["qwen", "base", "gpt-4", "mini", "fast", "org/alias"]
        assert {entry["parent"] for entry in listed.values()} == {None, "qwen"}
        assert {listed[name]["max_model_len"] for name in ("qwen", "fast")} == {8192}
        assert "max_model_len" not in listed["base"]
        assert {entry["created"] for entry in listed.values()} == {listed["base"]["created"]}
        assert {entry["owned_by"] for entry in listed.values()} == {"llmux"}
        assert [listed[name]["status"]["value"] for name in ("fast", "base")] == ["loaded", "unloaded"]
        assert (await bench.call("GET /v1/models")).document["data"][0]["created"] == listed["qwen"]["created"]
        for path in ("org/alias", "org/alias/", "models/qwen"):
            one = (await bench.call(f"GET /v1/models/{path}")).document
            assert (one["id"], one["parent"]) == (path.removesuffix("/"), "qwen")

        assert (await bench.call("POST /control/pin", {"model": "org/alias"})).status == 200
        assert (await bench.status())["mode"] == {"mode": "manual", "pinned": "qwen"}
        story = await bench.call("GET /control/models/fast/story")
        assert story.status == 200
        assert story.document["story"]
        metrics = (await bench.call("GET /metrics")).text
        assert 'model="qwen"' in metrics
        assert 'model="fast"' not in metrics

        assert (await bench.call("POST /control/unpin")).status == 200
        assert (await bench.call("POST /v1/chat/completions", chat("base", "hello"))).status == 200
        own = (await bench.call("GET /upstream/base/v1/models")).document["data"][0]["max_model_len"]
        assert (await bench.call("GET /v1/models/base")).document["max_model_len"] == own, "known since its start"
    assert {json.loads(line)["model"] for line in log.read_text().splitlines()} == {"qwen", "base"}


async def test_an_adapter_answers_under_its_own_name(tmp_path: Path) -> None:
    adapted = with_flags(OFFLOAD, "--enable-lora", "--lora-modules", "sql=/lora/sql")
    async with serving({"a": adapted, "b": BASE}, tmp_path) as bench:
        for name in ("sql", "b", "a", "sql"):
            await bench.expect(name)
        listed = {entry["id"]: entry for entry in (await bench.call("GET /v1/models")).document["data"]}
        assert (listed["sql"]["parent"], listed["sql"]["root"]) == ("a", "/lora/sql")
        count = {"model": "sql", "messages": [{"role": "user", "content": "two words"}]}
        counted = await bench.call("POST /v1/messages/count_tokens", count)
        assert counted.document["input_tokens"] == 2
        assert (bench.starts("a"), bench.starts("b")) == (1, 1)
