"""The control API as a client sees it: through the gateway's port, and on listeners of its own."""

import asyncio
import logging
import socket
from typing import Any

import aiohttp
import pytest

from llmux.access import Outcome
from llmux.control.status import process_state
from llmux.core.events import ShutdownRequested
from llmux.core.eviction import Eviction
from llmux.core.settings import Limits
from llmux.errors import ListenFailed
from tests.support.control import HOST, ControlApi, control_api
from tests.support.scripted import OFFLOAD, model

OFFLOAD_WORDS = {"weights": "offload", "process": "keep_running"}
SLOW_BACKOFF = Limits(min_active_seconds=0.0, backoff_first_seconds=60.0, backoff_max_seconds=60.0)


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


def entry(process_state: str, **more: Any) -> dict[str, Any]:
    """A model's entry; a scripted engine has the number of its port for its pid."""
    return {
        "in_flight": 0,
        "queue_depth": 0,
        "process_state": process_state,
        "eviction": OFFLOAD_WORDS,
        "on_gpu": False,
        "stays": False,
        "gpu_mib": {},
        "gpu_need": None,
        "pid": None,
        "address": f"127.0.0.1:{more['pid']}" if more.get("pid") else None,
        "failure": None,
        "oldest_wait_seconds": 0.0,
        "waits": None,
        "expected_in_seconds": None,
        "frozen": 0,
        "waking_seconds": None,
        "leaves_in_seconds": None,
        "streams": {"on_time": 0, "late": 0},
        "host_mib": None,
        "stalls": 0,
        "last_stall": None,
        "unfaithful": [],
        "images": None,
        **more,
    }


def status(state: str, mode: dict[str, str], **models: dict[str, Any]) -> dict[str, Any]:
    return {
        "state": state,
        "active_model": state.removeprefix("active:") if state.startswith("active:") else None,
        "mode": mode,
        "models": models,
        "resident": [name for name, shown in models.items() if shown["on_gpu"]],
        "gpus": {},
        "prefetch": None,
        "offered_load": None,
        "overload_seconds": None,
        "gpu_leases": [],
    }


AUTO = {"mode": "auto"}
AWAKE_A = entry("running", on_gpu=True, pid=1000)
AWAKE_B = entry("running", on_gpu=True, pid=1001)
ASLEEP = "sleeping:Offload+KeepRunning"


async def test_status_after_the_start() -> None:
    async with control_api(model("a"), model("b")) as api:
        assert await api.status() == status("idle", AUTO, a=entry("not_started"), b=entry("not_started"))


async def test_status_with_an_active_model_and_one_that_sleeps() -> None:
    async with control_api(model("a"), model("b")) as api:
        assert (await api.post("switch", model="a")).status == 200
        assert await api.status() == status("active:a", AUTO, a=AWAKE_A, b=entry("not_started"))
        assert (await api.post("switch", model="b")).status == 200
        assert await api.status() == status("active:b", AUTO, a=entry(ASLEEP, pid=1000), b=AWAKE_B)


async def test_status_while_switching() -> None:
    async with control_api(model("a"), model("b")) as api:
        engines = api.runtime.engines
        engines["a"].wake_gate.clear()
        waiting = api.runtime.ask("a")
        await api.until(lambda: engines["a"].calls == ["wake"])
        shown = await api.status()
        assert shown["models"]["a"].pop("oldest_wait_seconds") >= 0
        assert shown["models"]["a"].pop("waking_seconds") >= 0
        # Nothing has been seen of its starts: it is taken to need the 10 s of a switch that nothing is known of.
        assert 0 < shown["models"]["a"].pop("expected_in_seconds") <= 10.0
        waits = shown["models"]["a"].pop("waits")
        assert waits.pop("elapsed_seconds") >= 0
        assert waits.pop("text").startswith("is starting for ")
        assert waits == {"for": "on_its_way", "left_seconds": None, "from_cold": True}
        expected = status(
            "switching:none->a", AUTO, a=entry("starting", queue_depth=1, on_gpu=True), b=entry("not_started")
        )
        for timed in ("oldest_wait_seconds", "waking_seconds", "waits", "expected_in_seconds"):
            del expected["models"]["a"][timed]
        assert shown == expected
        engines["a"].wake_gate.set()
        await waiting.wait("admitted")
        engines["b"].wake_gate.clear()
        api.runtime.ask("b")
        draining = await api.status()
        assert draining["state"] == "switching:a->b"
        assert draining["active_model"] is None
        assert draining["models"]["a"]["in_flight"] == 1
        assert draining["models"]["a"]["process_state"] == "running"
        assert draining["models"]["b"]["waits"]["for"] == "drain"
        assert draining["models"]["b"]["waits"]["text"].startswith("waits for a to drain (1 request, ")
        api.runtime.access.end(waiting.request, Outcome.COMPLETED)
        await api.until(lambda: engines["b"].calls == ["wake"])
        assert (await api.status())["models"]["a"]["process_state"] == ASLEEP


async def test_a_sleeping_model_sleeps_until_its_wake_is_complete() -> None:
    async with control_api(model("a")) as api:
        engine = api.runtime.engines["a"]
        await api.post("wake", model="a")
        await api.post("sleep", model="a")
        engine.wake_gate.clear()
        api.runtime.ask("a")
        await api.until(lambda: engine.calls[-1] == "wake")
        shown = await api.status()
        assert (shown["state"], shown["models"]["a"]["process_state"]) == ("switching:none->a", ASLEEP)


async def test_status_in_manual_mode_and_pinned() -> None:
    async with control_api(model("a"), model("b")) as api:
        await api.post("switch", model="a")
        assert (await api.post("mode", mode="manual")).document == {"message": "mode is manual"}
        assert await api.status() == status("active:a", {"mode": "manual"}, a=AWAKE_A, b=entry("not_started"))
        assert (await api.post("pin", model="b")).status == 200
        pinned = {"mode": "manual", "pinned": "b"}
        assert await api.status() == status("active:b", pinned, a=entry(ASLEEP, pid=1000), b=AWAKE_B)
        await api.post("switch", model="a")
        assert (await api.status())["mode"] == {"mode": "manual", "pinned": "a"}
        await api.post("mode", mode="manual")
        assert (await api.status())["mode"] == {"mode": "manual"}
        await api.post("pin", model="a")
        assert (await api.call("POST", "/control/unpin")).status == 200
        assert (await api.status())["mode"] == AUTO


async def test_a_model_that_is_pinned_beside_others_keeps_those_out_that_do_not_fit() -> None:
    async with control_api(model("a"), model("b")) as api:
        assert (await api.post("pin", model="a", keep=True)).document == {
            "message": "'a' is on the GPU and stays there; others are served beside it"
        }
        assert await api.status() == status("active:a", AUTO, a=AWAKE_A | {"stays": True}, b=entry("not_started"))
        refused = await api.post("switch", model="b")
        assert refused.status == 500
        assert "it cannot be served beside 'a', which stays on the GPUs" in refused.document["error"]
        assert (await api.call("POST", "/control/unpin")).status == 200
        assert (await api.post("switch", model="b")).status == 200
        assert (await api.status())["models"]["a"] == entry(ASLEEP, pid=1000)


async def test_status_of_a_failed_model() -> None:
    async with control_api(model("a"), limits=SLOW_BACKOFF) as api:
        api.runtime.engines["a"].wake_error = "no such file"
        answer = await api.post("wake", model="a")
        assert (answer.status, answer.document) == (500, {"error": "no such file"})
        failed = entry("failed:no such file", failure="no such file")
        assert await api.status() == status("idle", AUTO, a=failed)


async def test_a_pin_that_fails_leaves_the_mode_as_it_was() -> None:
    async with control_api(model("a"), model("b"), limits=SLOW_BACKOFF) as api:
        api.runtime.engines["b"].wake_error = "no such file"
        assert (await api.post("pin", model="b")).status == 500
        assert (await api.status())["mode"] == AUTO


async def test_switch_to_the_active_model_and_wake_of_an_awake_one_return_immediately() -> None:
    async with control_api(model("a")) as api:
        for path in ("switch", "switch", "wake", "pin"):
            assert (await api.post(path, model="a")).status == 200
        assert api.runtime.engines["a"].calls == ["wake"]


async def test_sleep_by_the_models_own_eviction_another_and_when_nothing_runs() -> None:
    async with control_api(model("a")) as api:
        assert (await api.post("sleep", model="a")).document == {"message": "'a' is not_started"}
        await api.post("wake", model="a")
        assert (await api.post("sleep", model="a", eviction=None)).document == {"message": f"'a' is {ASLEEP}"}
        assert (await api.status())["state"] == "idle"
        stop = {"weights": "discard", "process": "stop"}
        assert (await api.post("sleep", model="a", eviction=stop)).document == {"message": "'a' is not_started"}
        assert api.runtime.engines["a"].calls == ["wake", f"evict {OFFLOAD}", "evict discard+stop"]


async def test_a_sleep_that_fails_is_a_500() -> None:
    async with control_api(model("a")) as api:
        await api.post("wake", model="a")
        api.runtime.engines["a"].evict_error = "stuck in a driver call"
        answer = await api.post("sleep", model="a")
        assert answer.status == 500
        assert "stuck in a driver call" in answer.document["error"]


async def test_a_new_eviction_applies_from_the_next_time_on() -> None:
    async with control_api(model("a"), model("b")) as api:
        answer = await api.call("GET", "/control/eviction")
        assert answer.document == {
            "models": {name: {"eviction": OFFLOAD_WORDS, "process_state": "not_started"} for name in "ab"}
        }
        words = {"weights": "discard", "process": "keep_running"}
        assert (await api.post("eviction", model="a", eviction=words)).status == 200
        assert (await api.call("GET", "/control/eviction")).document["models"]["a"]["eviction"] == words
        await api.post("switch", model="a")
        await api.post("switch", model="b")
        assert api.runtime.engines["a"].calls == ["wake", "evict discard+keep_running"]


@pytest.mark.parametrize("path", ["eviction", "sleep"])
@pytest.mark.parametrize("words", ["retain+cuda_suspend", "discard+checkpoint", "retain+keep_running"])
async def test_impossible_evictions_are_refused(path: str, words: str) -> None:
    async with control_api(model("a"), model("b")) as api:
        await api.post("switch", model="a")
        eviction = Eviction.parse(words)
        document = {"weights": eviction.weights.value, "process": eviction.process.value}
        answer = await api.post(path, model="a", eviction=document)
        assert answer.status == 422
        assert words in answer.document["error"]
        assert await api.status() == status("active:a", AUTO, a=AWAKE_A, b=entry("not_started"))


async def test_a_single_model_may_stay_on_the_gpu() -> None:
    async with control_api(model("a")) as api:
        words = {"weights": "retain", "process": "keep_running"}
        assert (await api.post("eviction", model="a", eviction=words)).status == 200


@pytest.mark.parametrize("path", ["pin", "switch", "sleep", "wake", "eviction"])
async def test_an_unknown_model_is_a_404(path: str) -> None:
    async with control_api(model("a")) as api:
        answer = await api.post(path, model="nobody", eviction=OFFLOAD_WORDS)
        assert answer.status == 404
        assert "'nobody'" in answer.document["error"]
        assert "configured models: a" in answer.document["error"]


async def test_an_unknown_mode_is_a_400_with_both_keys() -> None:
    async with control_api(model("a")) as api:
        answer = await api.post("mode", mode="sometimes")
        assert answer.status == 400
        assert set(answer.document) == {"message", "error"}


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("path", "headers", "body", "expected"),
    [
        ("switch", {}, b'{"model":"a"}', 415),
        ("switch", {"Content-Type": "text/plain"}, b'{"model":"a"}', 415),
        ("switch", JSON, b"", 400),
        ("switch", JSON, b"{", 400),
        ("switch", JSON, b"\xff", 400),
        ("switch", JSON, b'{"model":"\xff"}', 400),
        ("switch", JSON, b"[" * 50_000, 422),
        ("switch", JSON, b'{"other":' + b"[" * 50_000, 400),
        ("switch", JSON, b"{}", 422),
        ("switch", JSON, b'["a"]', 422),
        ("switch", JSON, b'{"model":1}', 422),
        ("switch", JSON, b'{"model":null}', 422),
        ("mode", JSON, b'{"mode":true}', 422),
        ("mode", JSON, b'{"model":"a"}', 422),
        ("eviction", JSON, b'{"model":"a"}', 422),
        ("eviction", JSON, b'{"model":"a","eviction":null}', 422),
        ("eviction", JSON, b'{"model":"a","eviction":{"weights":"offload"}}', 422),
        ("eviction", JSON, b'{"model":"a","eviction":{"weights":"Offload","process":"stop"}}', 422),
        ("eviction", JSON, b'{"model":"a","eviction":"offload+stop"}', 422),
        ("sleep", JSON, b'{"model":"a","eviction":{"process":"stop"}}', 422),
        ("switch", JSON, b'{"model":"' + b"a" * 70_000 + b'"}', 413),
        ("switch", {"Content-Type": "application/json; charset=utf-8"}, b'{"model":"a","unknown":{"x":[1]}}', 200),
    ],
)
async def test_bodies(path: str, headers: dict[str, str], body: bytes, expected: int) -> None:
    async with control_api(model("a")) as api:
        answer = await api.call(
            "POST", f"/control/{path}", data=body, headers=headers, skip_auto_headers=["Content-Type"]
        )
        assert answer.status == expected
        assert list(answer.document) == ["message" if expected == 200 else "error"]


@pytest.mark.parametrize(
    ("method", "path", "expected", "allow"),
    [
        ("GET", "/control/switch", 405, "POST"),
        ("POST", "/control/status", 405, "GET, HEAD"),
        ("PUT", "/control/eviction", 405, "GET, HEAD, POST"),
        ("DELETE", "/metrics", 405, "GET, HEAD"),
        ("GET", "/control/nothing", 404, None),
        ("GET", "/control", 404, None),
        ("GET", "/control/models/nobody/story", 404, None),
        ("GET", "/control/models/nobody/logs", 404, None),
    ],
)
async def test_wrong_methods_and_paths(method: str, path: str, expected: int, allow: str | None) -> None:
    async with control_api(model("a")) as api:
        answer = await api.call(method, path)
        assert (answer.status, answer.headers.get("Allow")) == (expected, allow)
        assert list(answer.document) == ["error"]


async def test_history_and_engine_output_also_of_a_model_with_a_slash_in_its_name() -> None:
    async with control_api(model("org/a:b")) as api:
        await api.post("wake", model="org/a:b")
        await api.post("sleep", model="org/a:b")
        for name in ("org/a:b", "org/a%3Ab"):
            logs = await api.call("GET", f"/control/models/{name}/logs")
            assert logs.document == {"model": "org/a:b", "lines": ["a line", "the last line"]}
        story = (await api.call("GET", "/control/models/org/a:b/story")).document["story"]
        assert [(chapter["event"], chapter["after"]["state"]) for chapter in story] == [
            ("WakeRequested", "waking"),
            ("WakeDone", "serving"),
            ("SleepRequested", "draining"),
            ("SleepRequested", "evicting"),
            ("EvictDone", "asleep"),
        ]
        assert story[-1]["after"] == {"state": "asleep", "eviction": OFFLOAD_WORDS}
        ages = [chapter["seconds_ago"] for chapter in story]
        assert ages == sorted(ages, reverse=True)
        assert ages[-1] >= 0


async def test_a_client_that_disconnects_does_not_stop_the_switch(caplog: pytest.LogCaptureFixture) -> None:
    async with control_api(model("a"), limits=SLOW_BACKOFF) as api:
        engine = api.runtime.engines["a"]
        for error, state in ((None, "running"), ("broke", "failed:broke")):
            engine.calls.clear()
            engine.wake_gate.clear()
            engine.wake_error = error
            await _begin_and_leave(api, "wake")
            engine.wake_gate.set()
            await api.until(lambda state=state: process_state(api.runtime.operations.model_status("a").state) == state)  # type: ignore[misc]
            await api.post("sleep", model="a", eviction={"weights": "retain", "process": "stop"})
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def _begin_and_leave(api: ControlApi, path: str) -> None:
    reader, writer = await asyncio.open_connection(HOST, api.port)
    body = b'{"model":"a"}'
    head = f"POST /control/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    await api.until(lambda: api.runtime.engines["a"].calls == ["wake"])
    writer.transport.abort()
    assert await reader.read() == b""


@pytest.mark.parametrize("where", ["port", "admin_port"])
async def test_the_admin_key_guards_control_but_not_page_and_metrics(where: str) -> None:
    async with control_api(model("a"), admin_key="secret") as api:
        port = getattr(api, where)
        for path in ("/control/status", "/control/nothing"):
            refused = await api.call("GET", path, port=port)
            assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "admin_key" in refused.document["error"]
        wrong = await api.call("GET", "/control/status", port=port, headers={"Authorization": "Bearer wrong"})
        assert wrong.status == 401
        for header in ({"Authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            assert (await api.call("GET", "/control/status", port=port, headers=header)).status == 200
        assert (await api.call("GET", "/metrics")).status == 200
        assert (await api.call("GET", "/")).status == 200


@pytest.mark.parametrize("where", ["port", "admin_port"])
@pytest.mark.parametrize(
    "headers",
    [{"Host": "rebound.example"}, {"Origin": "http://evil.example"}, {"X-Forwarded-For": "127.0.0.1"}],
)
async def test_without_a_key_browsers_and_proxies_are_refused(where: str, headers: dict[str, str]) -> None:
    async with control_api(model("a")) as api:
        answer = await api.call("POST", "/control/unpin", port=getattr(api, where), headers=headers)
        assert answer.status == 403
        assert "admin_key" in answer.document["error"]


async def test_each_listener_serves_only_its_own_routes() -> None:
    async with control_api(model("a")) as api:
        found = {
            (where, path): (await api.call("GET", path, port=getattr(api, where))).status
            for where in ("admin_port", "metrics_port")
            for path in ("/control/status", "/metrics", "/")
        }
        assert found == {
            ("admin_port", "/control/status"): 200,
            ("admin_port", "/metrics"): 404,
            ("admin_port", "/"): 404,
            ("metrics_port", "/control/status"): 404,
            ("metrics_port", "/metrics"): 200,
            ("metrics_port", "/"): 404,
        }


async def test_metrics_in_both_formats() -> None:
    async with control_api(model("a"), model("b")) as api:
        await api.post("switch", model="a")
        await api.post("switch", model="b")
        await api.call("GET", "/v1/models")
        plain = await api.call("GET", "/metrics")
        assert plain.headers["Content-Type"].startswith("text/plain")
        assert 'llmux_switches_total{from="a",to="b"} 1.0' in plain.text.splitlines()
        assert 'llmux_http_requests_total{endpoint="/v1/models",method="GET",status="200"} 1.0' in plain.text
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        openmetrics = await api.call("GET", "/metrics", headers=accept)
        assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")


async def test_the_status_page_loads_nothing_from_elsewhere() -> None:
    async with control_api(model("a")) as api:
        page = await api.call("GET", "/")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert "/control/status" in page.text
        assert "http://" not in page.text
        assert "https://" not in page.text


async def test_a_port_that_is_taken_is_reported_clearly() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with control_api(model("a")) as api:
            for key in ("admin_port", "metrics_port"):
                listen = getattr(api.server, f"listen_{key.removesuffix('_port')}")
                with pytest.raises(ListenFailed, match=rf"cannot listen on {HOST}:{port} \({key}\): .*; set {key} to"):
                    await listen(HOST, port)


async def test_a_body_that_arrives_after_the_head_is_read_by_the_new_protocol() -> None:
    async with control_api(model("a")) as api:
        reader, writer = await asyncio.open_connection(HOST, api.port)
        body = b'{"model":"a"}'
        writer.write(
            b"POST /control/wake HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body)
        )
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        writer.write(body)
        answer = await reader.read()
        assert b"HTTP/1.1 200 OK\r\n" in answer
        assert answer.endswith(b'{"message":"\'a\' is awake"}')
        writer.close()
        await writer.wait_closed()


async def test_commands_under_way_fail_at_shutdown() -> None:
    async with control_api(model("a"), model("b")) as api:
        holder = api.runtime.ask("a")
        await holder.wait("admitted")
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(api.post("switch", model="b"))
            await api.until(lambda: api.runtime.operations.status().switching == ("a", "b"))
            refused = tasks.create_task(_expect_the_end(api))
            waiting_answer = await waiting
            await refused
        assert (waiting_answer.status, waiting_answer.document) == (500, {"error": "llmux is shutting down"})


async def _expect_the_end(api: ControlApi) -> None:
    api.runtime.controller.feed(ShutdownRequested(0.0))
    with pytest.raises(aiohttp.ClientResponseError):
        (await api.session.post(f"{api.url}/control/wake", json={"model": "a"})).raise_for_status()
