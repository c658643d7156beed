"""0.7.7's control API: its nine endpoints, their refusals, and the status document in every state."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench import DISCARD, OFFLOAD, SLOW, STOP, Bench, eventually, serving, with_flags

THREE = {"a": with_flags(OFFLOAD, *SLOW), "b": DISCARD, "c": STOP}
FIELDS = ("in_flight", "queue_depth", "process_state")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(THREE, tmp_path) as running:
        yield running


async def document(bench: Bench) -> Any:
    """The status document without what 0.7.7 did not have."""
    full = await bench.status()
    models = {name: {field: model[field] for field in FIELDS} for name, model in full["models"].items()}
    return {**{key: full[key] for key in ("state", "active_model", "mode")}, "models": models}


def model(process_state: str, in_flight: int = 0, queue_depth: int = 0) -> dict[str, Any]:
    return {"in_flight": in_flight, "queue_depth": queue_depth, "process_state": process_state}


async def test_status_while_idle(bench: Bench) -> None:
    assert await document(bench) == {
        "state": "idle",
        "active_model": None,
        "mode": {"mode": "auto"},
        "models": {"a": model("not_started"), "b": model("not_started"), "c": model("not_started")},
    }


async def test_status_while_active_and_asleep(bench: Bench) -> None:
    for name in "abc":
        await bench.expect(name)
    assert await document(bench) == {
        "state": "active:c",
        "active_model": "c",
        "mode": {"mode": "auto"},
        "models": {
            "a": model("sleeping:Offload+KeepRunning"),
            "b": model("sleeping:Discard+KeepRunning"),
            "c": model("running"),
        },
    }
    await bench.expect("a")
    assert (await document(bench))["models"]["c"] == model("not_started")


async def test_status_while_switching(bench: Bench) -> None:
    async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(bench.expect("b", f"number {number}")) for number in range(2)]
        await bench.until_model("b", queue_depth=2)
        assert await document(bench) == {
            "state": "switching:a->b",
            "active_model": None,
            "mode": {"mode": "auto"},
            "models": {
                "a": model("running", in_flight=1),
                "b": model("not_started", queue_depth=2),
                "c": model("not_started"),
            },
        }
        await bench.let_go("a")
        await stream.read()
        await asyncio.gather(*waiting)
    assert await bench.state() == "active:b"


async def test_status_while_starting_with_nothing_active(tmp_path: Path) -> None:
    async with serving({"a": with_flags(STOP, "--startup-delay-ms", "500")}, tmp_path) as bench:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.expect("a"))
            await bench.until_state("switching:none->a")
            assert await document(bench) == {
                "state": "switching:none->a",
                "active_model": None,
                "mode": {"mode": "auto"},
                "models": {"a": model("starting", queue_depth=1)},
            }
        assert await bench.state() == "active:a"


async def test_a_sleeping_model_stays_sleeping_until_its_wake_is_complete(tmp_path: Path) -> None:
    slow = with_flags(OFFLOAD, "--sim-wake-ms", "500")
    async with serving({"a": slow, "b": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        await bench.expect("b")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.expect("a"))
            await bench.until_state("switching:b->a")
            await bench.until_model("b", process_state="sleeping:Offload+KeepRunning")
            assert (await document(bench))["models"]["a"] == model("sleeping:Offload+KeepRunning", queue_depth=1)


async def test_status_while_failed(tmp_path: Path) -> None:
    async with serving({"a": with_flags(STOP, "--sim-fault", "start-exit:3"), "b": STOP}, tmp_path) as bench:
        assert (await bench.ask("a")).status == 503
        status = await document(bench)
        assert status["state"] == "idle"
        assert status["active_model"] is None
        assert status["models"]["a"]["process_state"].startswith("failed:the engine ended with")
        assert status["models"]["b"] == model("not_started")


async def test_manual_mode_serves_the_active_model_only(bench: Bench) -> None:
    await bench.expect("a")
    answer = await bench.call("POST /control/mode", {"mode": "manual"})
    assert (answer.status, set(answer.document)) == (200, {"message"})
    status = await document(bench)
    assert status["mode"] == {"mode": "manual"}
    assert status["state"] == "active:a"
    await bench.expect("a")
    refused = await bench.ask("b")
    assert refused.status == 503
    assert "'b'" in refused.document["error"]["message"]
    assert "'a'" in refused.document["error"]["message"]
    assert (await bench.call("POST /control/mode", {"mode": "auto"})).status == 200
    await bench.expect("b")


async def test_manual_mode_with_nothing_active_names_none(bench: Bench) -> None:
    await bench.call("POST /control/mode", {"mode": "manual"})
    refused = await bench.ask("b")
    assert refused.status == 503
    assert "'none'" in refused.document["error"]["message"]


async def test_switch_in_manual_mode_moves_the_pin(bench: Bench) -> None:
    await bench.expect("a")
    await bench.call("POST /control/mode", {"mode": "manual"})
    assert (await bench.call("POST /control/switch", {"model": "b"})).status == 200
    status = await document(bench)
    assert (status["state"], status["mode"]) == ("active:b", {"mode": "manual", "pinned": "b"})
    await bench.expect("b")
    assert (await bench.ask("a")).status == 503


async def test_switch_in_automatic_mode_pins_nothing(bench: Bench) -> None:
    for _ in range(2):
        answer = await bench.call("POST /control/switch", {"model": "b"})
        assert (answer.status, set(answer.document)) == (200, {"message"})
    status = await document(bench)
    assert (status["state"], status["mode"]) == ("active:b", {"mode": "auto"})
    await bench.expect("a")


async def test_pin_and_unpin(bench: Bench) -> None:
    await bench.expect("a")
    answer = await bench.call("POST /control/pin", {"model": "b"})
    assert (answer.status, set(answer.document)) == (200, {"message"})
    assert await document(bench) == {
        "state": "active:b",
        "active_model": "b",
        "mode": {"mode": "manual", "pinned": "b"},
        "models": {"a": model("sleeping:Offload+KeepRunning"), "b": model("running"), "c": model("not_started")},
    }
    assert (await bench.ask("a")).status == 503
    await bench.expect("b")
    answer = await bench.call("POST /control/unpin")
    assert (answer.status, set(answer.document)) == (200, {"message"})
    assert (await document(bench))["mode"] == {"mode": "auto"}
    await bench.expect("a")


async def test_requests_for_a_pinned_model_wait_for_it(tmp_path: Path) -> None:
    async with serving({"a": with_flags(STOP, "--startup-delay-ms", "500"), "b": STOP}, tmp_path) as bench:
        async with asyncio.TaskGroup() as tasks:
            pinned = tasks.create_task(bench.call("POST /control/pin", {"model": "a"}))
            await bench.until_state("switching:none->a")
            assert (await bench.ask("b")).status == 503
            await bench.expect("a")
        assert pinned.result().status == 200


async def test_manual_mode_removes_a_pin(bench: Bench) -> None:
    await bench.call("POST /control/pin", {"model": "b"})
    await bench.call("POST /control/mode", {"mode": "manual"})
    assert (await document(bench))["mode"] == {"mode": "manual"}
    await bench.expect("b")


@pytest.mark.parametrize(
    "command", ["pin", pytest.param("switch", marks=pytest.mark.slow), pytest.param("wake", marks=pytest.mark.slow)]
)
async def test_a_command_that_fails_reports_it_and_leaves_the_mode(tmp_path: Path, command: str) -> None:
    async with serving({"a": OFFLOAD, "b": with_flags(STOP, "--sim-fault", "start-exit:3")}, tmp_path) as bench:
        await bench.expect("a")
        if command == "switch":
            await bench.call("POST /control/pin", {"model": "a"})
        before = await document(bench)
        answer = await bench.call(f"POST /control/{command}", {"model": "b"})
        assert (answer.status, set(answer.document)) == (500, {"error"})
        assert "exit code 3" in answer.document["error"]
        assert (await document(bench))["mode"] == before["mode"]
        await bench.expect("a")


async def test_a_deferred_switch_respects_manual_mode(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path, policy={"min_active_seconds": 30.0}) as bench:
        await bench.expect("a")
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.ask("b"))
            await bench.until_model("b", queue_depth=1)
            await bench.call("POST /control/mode", {"mode": "manual"})
            assert (await waiting).status == 503
        await bench.expect("a")
        assert await bench.state() == "active:a"


async def test_evictions_are_shown_and_overridden(bench: Bench) -> None:
    await bench.expect("a")
    shown = (await bench.call("GET /control/eviction")).document
    assert shown == {
        "models": {
            "a": {"eviction": {"weights": "offload", "process": "keep_running"}, "process_state": "running"},
            "b": {"eviction": {"weights": "discard", "process": "keep_running"}, "process_state": "not_started"},
            "c": {"eviction": {"weights": "retain", "process": "stop"}, "process_state": "not_started"},
        }
    }
    wanted = {"weights": "discard", "process": "keep_running"}
    answer = await bench.call("POST /control/eviction", {"model": "a", "eviction": wanted})
    assert (answer.status, set(answer.document)) == (200, {"message"})
    assert (await bench.call("GET /control/eviction")).document["models"]["a"]["eviction"] == wanted
    await bench.expect("b")
    assert await bench.process_state("a") == "sleeping:Discard+KeepRunning"
    assert (await bench.stats("a"))["sleep_level"] == 2
    await bench.expect("a")


async def test_sleep_leaves_the_gpu_idle_and_wake_brings_back(bench: Bench) -> None:
    await bench.expect("a")
    for _ in range(2):
        answer = await bench.call("POST /control/sleep", {"model": "a"})
        assert (answer.status, set(answer.document)) == (200, {"message"})
        assert await bench.state() == "idle"
        assert await bench.process_state("a") == "sleeping:Offload+KeepRunning"
    assert (await bench.stats("a"))["sleeps"] == 1
    for _ in range(2):
        answer = await bench.call("POST /control/wake", {"model": "a"})
        assert (answer.status, set(answer.document)) == (200, {"message"})
        assert await bench.state() == "active:a"
    assert (await bench.stats("a"))["wakes"] == 1
    await bench.expect("a")


async def test_sleep_of_a_model_that_does_not_run(bench: Bench) -> None:
    assert (await bench.call("POST /control/sleep", {"model": "a", "eviction": None})).status == 200
    assert await bench.process_state("a") == "not_started"


async def test_sleep_with_an_eviction_of_its_own_and_deeper(bench: Bench) -> None:
    await bench.expect("a")
    discard, stop = {"weights": "discard", "process": "keep_running"}, {"weights": "retain", "process": "stop"}
    assert (await bench.call("POST /control/sleep", {"model": "a", "eviction": discard})).status == 200
    assert await bench.process_state("a") == "sleeping:Discard+KeepRunning"
    engine = bench.engine("a")
    assert (await bench.call("POST /control/sleep", {"model": "a", "eviction": stop})).status == 200
    assert await bench.process_state("a") == "not_started"
    assert not engine.is_running()
    assert (await bench.call("GET /control/eviction")).document["models"]["a"]["eviction"]["weights"] == "offload"


async def test_sleep_drains_first(bench: Bench) -> None:
    async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
        sleeping = tasks.create_task(bench.call("POST /control/sleep", {"model": "a"}))
        await bench.until_internal_state("a", "draining")
        assert await bench.process_state("a") == "running"
        await bench.let_go("a")
        await stream.read()
        assert stream.is_complete
        assert (await sleeping).status == 200
    assert (await bench.stats("a"))["slept_under_requests"] == 0


async def test_wake_makes_room_as_a_switch_does(bench: Bench) -> None:
    await bench.expect("a")
    assert (await bench.call("POST /control/wake", {"model": "c"})).status == 200
    assert await bench.state() == "active:c"
    assert await bench.process_state("a") == "sleeping:Offload+KeepRunning"
    assert (await document(bench))["mode"] == {"mode": "auto"}


EVICTION = {"weights": "offload", "process": "keep_running"}
BODIES = {
    "mode": {"mode": "auto"},
    "pin": {"model": "a"},
    "switch": {"model": "a"},
    "eviction": {"model": "a", "eviction": EVICTION},
    "sleep": {"model": "a"},
    "wake": {"model": "a"},
}


async def test_refusals(bench: Bench) -> None:
    for name, body in BODIES.items():
        call = f"POST /control/{name}"
        assert (await bench.call(call, data=b"{}", headers={"Content-Type": "text/plain"})).status == 415, name
        no_json = await bench.call(call, data=b"{", headers={"Content-Type": "application/json"})
        assert (no_json.status, set(no_json.document)) == (400, {"error"}), name
        missing = await bench.call(call, {})
        assert (missing.status, set(missing.document)) == (422, {"error"}), name
        assert (await bench.call(call, dict.fromkeys(body, 7))).status == 422, name
        if "model" in body:
            unknown = await bench.call(call, {**body, "model": "nobody"})
            assert (unknown.status, set(unknown.document)) == (404, {"error"}), name
    assert await bench.state() == "idle"


async def test_unknown_fields_are_ignored(bench: Bench) -> None:
    assert (await bench.call("POST /control/mode", {"mode": "auto", "colour": "red"})).status == 200


async def test_an_unknown_mode_is_answered_with_both_keys(bench: Bench) -> None:
    answer = await bench.call("POST /control/mode", {"mode": "sometimes"})
    assert (answer.status, set(answer.document)) == (400, {"error", "message"})


@pytest.mark.parametrize("eviction", [{"weights": "offload"}, {"weights": "x", "process": "stop"}, "stop", 5])
async def test_wrong_evictions(bench: Bench, eviction: Any) -> None:
    for name in ("eviction", "sleep"):
        answer = await bench.call(f"POST /control/{name}", {"model": "a", "eviction": eviction})
        assert (answer.status, set(answer.document)) == (422, {"error"})


async def test_wrong_methods_and_paths(bench: Bench) -> None:
    for name in BODIES:
        answer = await bench.call(f"DELETE /control/{name}")
        assert answer.status == 405, name
        assert "POST" in answer.headers["Allow"]
    answer = await bench.call("POST /control/status", {})
    assert (answer.status, "GET" in answer.headers["Allow"]) == (405, True)
    assert (await bench.call("GET /control/nothing")).status == 404


async def test_the_ports_of_metrics_and_control(tmp_path: Path, unused_ports: tuple[int, int]) -> None:
    metrics, admin = unused_ports
    async with serving(THREE, tmp_path, metrics_port=metrics, admin_port=admin) as bench:
        assert (await bench.call(f"GET http://127.0.0.1:{metrics}/metrics")).status == 200
        assert (await bench.call(f"GET http://127.0.0.1:{metrics}/control/status")).status == 404
        assert (await bench.call(f"GET http://127.0.0.1:{metrics}/v1/models")).status == 404
        status = await bench.call(f"GET http://127.0.0.1:{admin}/control/status")
        assert status.document == await bench.status()
        assert (await bench.call(f"GET http://127.0.0.1:{admin}/metrics")).status == 404
        assert (await bench.call("GET /metrics")).status == 200


async def test_without_a_key_control_serves_this_machine_only(bench: Bench) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"X-Forwarded-For": "10.0.0.1"}):
        assert (await bench.call("GET /control/status", headers=headers)).status == 403


async def test_a_configured_admin_key_is_required(tmp_path: Path) -> None:
    async with serving(THREE, tmp_path, admin_key="secret") as bench:
        assert (await bench.call("GET /control/status")).status == 401
        right = {"Authorization": "Bearer secret", "Origin": "http://elsewhere.example"}
        assert (await bench.call("GET /control/status", headers=right)).status == 200


async def test_a_client_that_disconnects_stops_nothing(tmp_path: Path) -> None:
    async with serving({"a": with_flags(STOP, "--startup-delay-ms", "500")}, tmp_path) as bench:
        async with asyncio.TaskGroup() as tasks:
            switching = tasks.create_task(bench.call("POST /control/switch", {"model": "a"}))
            await bench.until_state("switching:none->a")
            switching.cancel()
        await bench.until_state("active:a")
        assert bench.starts("a") == 1
        await eventually(lambda: len(bench.server.descendants()) == 2, "one shim and one engine")
