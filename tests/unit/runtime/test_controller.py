import asyncio
from unittest.mock import Mock

import pytest

from llmux.access import Outcome
from llmux.core.events import ShutdownRequested
from llmux.core.identifiers import InstanceId
from llmux.core.states import Asleep, Failed, Serving
from llmux.errors import CommandFailed, EngineUnavailable, FailureReason, ShuttingDown
from llmux.instances.health import Health
from tests.support.scripted import OFFLOAD, model, scripted_runtime


async def test_a_switch_evicts_then_wakes() -> None:
    async with scripted_runtime(model("a"), model("b")) as runtime:
        first = runtime.ask("a")
        await first.wait("admitted")
        runtime.access.end(first.request, Outcome.COMPLETED)
        await runtime.ask("b").wait("admitted")
        assert runtime.engines["a"].calls == ["wake", f"evict {OFFLOAD}"]
        assert runtime.engines["b"].calls == ["wake"]
        assert runtime.scheduler.state("a") == Asleep(OFFLOAD)
        (switches,) = [metric for metric in runtime.metrics.collect() if metric.name == "llmux_switches"]
        assert sum(sample.value for sample in switches.samples) == 2


async def test_a_failed_start_is_ended_before_it_is_reported() -> None:
    async with scripted_runtime(model("a")) as runtime:
        runtime.engines["a"].wake_error = "no such file"
        holder = runtime.ask("a")
        await holder.wait("rejected")
        assert isinstance(holder.error, EngineUnavailable)
        assert "no such file" in str(holder.error)
        assert runtime.engines["a"].calls == ["wake", "end"]
        assert isinstance(runtime.scheduler.state("a"), Failed)


async def test_an_unexpected_exception_fails_only_that_instance() -> None:
    async with scripted_runtime(model("a"), model("b")) as runtime:
        runtime.engines["a"].wake_exception = ValueError("a bug")
        await runtime.ask("a").wait("rejected")
        await runtime.ask("b").wait("admitted")


async def test_an_engine_that_ends_as_it_becomes_ready_does_not_serve() -> None:
    async with scripted_runtime(model("a")) as runtime:
        engine = runtime.engines["a"]
        engine.wake_gate.clear()
        holder = runtime.ask("a")
        async with asyncio.timeout(5):
            while engine.calls != ["wake"]:
                await asyncio.sleep(0)
        engine.lost = "the engine ended with exit code 0"
        runtime.controller.engine_exited("a", FailureReason(engine.lost))
        engine.wake_gate.set()
        await holder.wait("rejected")
        assert "exit code 0" in str(holder.error)


async def test_an_eviction_that_fails_keeps_the_gpu_until_a_later_one_succeeds() -> None:
    async with scripted_runtime(model("a"), model("b")) as runtime:
        first = runtime.ask("a")
        await first.wait("admitted")
        runtime.access.end(first.request, Outcome.COMPLETED)
        runtime.engines["a"].evict_error = "stuck in a driver call"
        waiting = runtime.ask("b")
        async with asyncio.timeout(5):
            while len(runtime.engines["a"].calls) < 4:
                await asyncio.sleep(0.001)
        assert runtime.engines["b"].calls == []
        runtime.engines["a"].evict_error = None
        await waiting.wait("admitted")


async def test_a_death_while_serving_gives_requests_back_and_starts_again() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = runtime.ask("a")
        await holder.wait("admitted")
        runtime.engines["a"].health = Health.DEAD
        runtime.controller.engine_exited("a", FailureReason("exit code 0"))
        await holder.wait("admitted", "revoked")
        runtime.give_back(holder, "its connection broke")
        await holder.wait("admitted", "revoked", "admitted")
        assert runtime.scheduler.model("a").instance == InstanceId("a", 2)


async def test_commands_outlive_their_caller() -> None:
    async with scripted_runtime(model("a")) as runtime:
        runtime.engines["a"].wake_gate.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await runtime.operations.switch("a")
        runtime.engines["a"].wake_gate.set()
        await runtime.operations.wake("a")
        assert isinstance(runtime.scheduler.state("a"), Serving)


async def test_a_failed_command_says_why() -> None:
    async with scripted_runtime(model("a")) as runtime:
        runtime.engines["a"].wake_error = "no such file"
        with pytest.raises(CommandFailed, match="no such file"):
            await runtime.operations.pin("a")
        assert runtime.operations.status().mode == runtime.scheduler.mode


async def test_shutdown_gives_up_a_start_and_refuses_its_waiters() -> None:
    async with scripted_runtime(model("a")) as runtime:
        runtime.engines["a"].wake_gate.clear()
        holder = runtime.ask("a")
        async with asyncio.timeout(5):
            while not runtime.engines["a"].calls:
                await asyncio.sleep(0)
        runtime.controller.feed(ShutdownRequested(0.0))
        await holder.wait("rejected")
        assert isinstance(holder.error, ShuttingDown)
        async with asyncio.timeout(5):
            await runtime.controller.wait_stopped()
        assert runtime.engines["a"].calls == ["wake", "end"]


async def test_an_error_in_the_scheduler_itself_ends_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_runtime(model("a")) as runtime:
        with monkeypatch.context() as patch:
            patch.setattr(runtime.controller, "_scheduler", Mock(handle=Mock(side_effect=ZeroDivisionError)))
            with pytest.raises(ZeroDivisionError):
                runtime.ask("a")
            with pytest.raises(ZeroDivisionError):
                await runtime.controller.wait_stopped()
        runtime.controller._stopped = asyncio.get_running_loop().create_future()


async def test_a_start_that_lacks_memory_stops_a_sleeper_and_is_tried_once_more() -> None:
    async with scripted_runtime(model("a"), model("b")) as runtime:
        await runtime.operations.wake("a")
        runtime.engines["b"].wake_error = "CUDA out of memory"
        runtime.engines["b"].is_out_of_memory = True
        runtime.engines["a"].evict_gate.clear()
        holder = runtime.ask("b")
        async with asyncio.timeout(5):
            runtime.engines["a"].evict_gate.set()
            while runtime.engines["a"].calls[-1] != "evict retain+stop":
                await asyncio.sleep(0)
        runtime.engines["b"].wake_error = None
        await holder.wait("admitted")
        assert runtime.engines["a"].calls == ["wake", f"evict {OFFLOAD}", "evict retain+stop"]
        assert runtime.engines["b"].calls == ["wake", "end", "wake"]


async def test_a_second_lack_of_memory_is_a_failure() -> None:
    async with scripted_runtime(model("a"), model("b"), model("c")) as runtime:
        for name in ("a", "b"):
            await runtime.operations.wake(name)
        runtime.engines["c"].wake_error = "CUDA out of memory"
        runtime.engines["c"].is_out_of_memory = True
        with pytest.raises(CommandFailed, match="out of memory"):
            await runtime.operations.switch("c")
        assert runtime.engines["c"].calls == ["wake", "end", "wake", "end"]
        assert "evict retain+stop" in runtime.engines["a"].calls
        assert "evict retain+stop" not in runtime.engines["b"].calls
