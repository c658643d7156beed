"""Servers of a kind that the configuration describes: they sleep by calls, and work on when they have answered."""

import asyncio
from pathlib import Path
from typing import Any

from tests.support.bench import Bench, eventually
from tests.support.command_engines import MODEL, START, serving_commands

FREED = {"path": "/memory", "field": "devices.0.free", "at_least": 50}
KIND: dict[str, Any] = {
    "start_command": START,
    "ready_path": "/ready",
    "sleep": {
        "discard": {
            "leave": [{"call": "POST /free", "body": {"model": "{name}"}, "until": FREED, "timeout_seconds": 2}],
            "come_back": [{"call": "POST /load"}],
        }
    },
    "busy": {"path": "/queue", "fields": ["queue_running", "queue_pending"]},
    "inference_paths": [{"path": "/v1/chat/completions"}, {"path": "/prompt", "model_in_body": False}],
    "never_forwarded": ["free", "clog"],
    "pages": True,
    "canary": False,
}
PAINTER = {"engine": "painter", "eviction": "discard+keep_running"}
MODELS = {"paint": PAINTER, "chat": MODEL}


def serving(directory: Path, **top: Any) -> Any:
    return serving_commands(MODELS, directory, engines={"painter": KIND}, **top)


async def asked(bench: Bench) -> list[str]:
    return list((await bench.engine_call("paint", "GET /asked")).document)


async def test_it_sleeps_by_its_calls_and_wakes_by_them(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        first = (await bench.ask("paint")).said
        await bench.ask("chat")
        assert (await bench.process_state("paint")).startswith("sleeping:")
        calls = await asked(bench)
        assert 'POST /free {"model": "paint"}' in calls
        assert calls.count("GET /memory") >= 2, "it was read back until the memory was free"
        assert (await bench.ask("paint")).said == first, "it is the same process"
        assert "POST /load {}" in await asked(bench)


async def test_a_sleep_that_frees_nothing_is_followed_by_a_stop(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        await bench.ask("paint")
        await bench.engine_call("paint", "POST /clog", {})
        assert (await bench.ask("chat")).status == 200
        await bench.until_model("paint", process_state="not_started")
        assert bench.server.find_in_log("stopping the engine instead.*devices.0.free of /memory at least 50")


async def in_flight(bench: Bench) -> int:
    return int((await bench.status())["models"]["paint"]["in_flight"])


async def test_work_that_goes_on_is_in_flight_and_a_switch_waits_for_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        answer = await bench.call("POST /upstream/paint/prompt", {"prompt": {}})
        assert answer.document == {"prompt_id": "1"}
        assert await in_flight(bench) == 1
        waiting = asyncio.ensure_future(bench.ask("chat"))  # noqa: TID251 - a client of its own
        await bench.until_internal_state("paint", "draining")
        assert not waiting.done()
        await bench.engine_call("paint", "POST /finish", {})
        assert (await waiting).status == 200


async def test_a_drain_waits_for_work_no_longer_than_its_deadline(tmp_path: Path) -> None:
    async with serving(tmp_path, drain_timeout_seconds=0.5) as bench:
        await bench.call("POST /upstream/paint/prompt", {"prompt": {}})
        assert (await bench.ask("chat")).status == 200
        assert await in_flight(bench) == 0


async def test_work_ends_with_its_engine(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        await bench.call("POST /upstream/paint/prompt", {"prompt": {}})
        bench.engine("paint").kill()

        async def ended() -> bool:
            return await in_flight(bench) == 0

        await eventually(ended, "nothing in flight")
        assert (await bench.ask("chat")).status == 200


async def test_pages_are_no_demand(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        for path in ("/upstream/paint", "/upstream/paint/", "/upstream/paint/assets/index.js"):
            assert (await bench.call(f"GET {path}")).code == "model_not_loaded"
        assert bench.starts("paint") == 0
        await bench.ask("paint")
        assert (await bench.call("GET /upstream/paint/assets/index.js")).document == "a script"
        assert (await bench.call("GET /upstream/paint/")).document == "a page"
        assert (await bench.call("POST /upstream/paint/other", {})).status == 405
        assert (await bench.call("POST /upstream/paint/free", {})).status == 403
        assert (await bench.call("GET /upstream/chat/assets/index.js")).status == 404
        assert not [call for call in await asked(bench) if "/free" in call]


async def test_a_path_of_one_kind_takes_its_model_from_query_or_header(tmp_path: Path) -> None:
    async with serving(tmp_path) as bench:
        assert (await bench.call("POST /prompt?model=paint", {"prompt": {}})).status == 200
        answer = await bench.call("POST /prompt", {"prompt": {}}, headers={"model-override": "paint"})
        assert answer.status == 200
        assert (await bench.call("POST /prompt", {"prompt": {}})).status == 400
        assert (await bench.call("POST /upstream/chat/prompt", {"prompt": {}})).status == 404


async def test_a_warm_up_asks_nothing_of_a_kind_that_knows_no_text(tmp_path: Path) -> None:
    async with serving_commands({"paint": PAINTER}, tmp_path, engines={"painter": KIND}, warmup=True) as bench:
        await bench.server.wait_for_log("warmed up")
        await bench.ask("paint")
        calls = await asked(bench)
        assert "POST /load {}" in calls, "it was put to sleep after the start"
        assert len([call for call in calls if "/v1/chat" in call]) == 1
