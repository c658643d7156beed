import asyncio

import pytest

from llmux.access import Lease, Outcome
from llmux.core.settings import Limits
from llmux.engines.health import Health
from llmux.errors import EngineDied, ModelNotLoaded, QueueTimeout
from tests.support.scripted import Holder, Runtime, model, scripted_runtime


async def granted(runtime: Runtime, name: str) -> tuple[Holder, Lease]:
    holder = runtime.ask(name)
    await holder.wait("granted")
    assert holder.lease is not None
    return holder, holder.lease


async def test_a_serving_model_grants_within_the_call() -> None:
    async with scripted_runtime(model("a")) as runtime:
        await granted(runtime, "a")
        second = runtime.ask("a")
        assert second.told == ["granted"]
        assert second.lease is not None
        assert (second.lease.queue_seconds, second.lease.switch_seconds) == (0.0, None)
        assert second.lease.upstream == runtime.engines["a"].upstream
        assert len(runtime.scheduler.model("a").in_flight) == 2


async def test_a_lease_after_a_switch_carries_its_cost() -> None:
    async with scripted_runtime(model("a")) as runtime:
        _, lease = await granted(runtime, "a")
        assert lease.switch_seconds is not None
        assert 0 <= lease.switch_seconds <= lease.queue_seconds


async def test_a_client_that_leaves_while_waiting_is_no_demand() -> None:
    async with scripted_runtime(model("a"), model("b")) as runtime:
        holder, _ = await granted(runtime, "a")
        waiting = Holder()
        request = runtime.access.acquire("b", waiting, size_bytes=1)
        runtime.access.cancel(request)
        runtime.access.cancel(request)
        assert runtime.ask("a").told == ["granted"]
        assert (waiting.told, runtime.engines["b"].calls) == ([], [])
        assert holder.told == ["granted"]


def first_tokens(runtime: Runtime) -> float:
    """How many the metrics have counted."""
    families = {family.name: family for family in runtime.metrics.collect()}
    samples = families["llmux_time_to_first_token_seconds"].samples
    return sum(sample.value for sample in samples if sample.name.endswith("_count"))


@pytest.mark.parametrize("at_once", [False, True])
async def test_the_first_token_of_a_streamed_answer_is_reported(at_once: bool) -> None:
    async with scripted_runtime(model("a")) as runtime:
        if at_once:
            await granted(runtime, "a")
        holder, record = Holder(), runtime.scheduler.model("a")
        request = runtime.access.acquire("a", holder, size_bytes=1, streams=True)
        await holder.wait("granted")
        assert ({r.id for r in record.awaiting_first_token}, first_tokens(runtime)) == ({request}, 0)
        assert holder.lease is not None
        runtime.access.answered(holder.lease)
        assert (record.awaiting_first_token, first_tokens(runtime)) == (set(), 1)
        assert request in {r.id for r in record.in_flight}


async def test_an_answer_in_one_piece_has_no_first_token() -> None:
    async with scripted_runtime(model("a")) as runtime:
        _, lease = await granted(runtime, "a")
        assert not runtime.scheduler.model("a").awaiting_first_token
        runtime.access.answered(lease)
        assert first_tokens(runtime) == 0


async def test_a_streaming_request_that_is_tried_again_waits_for_its_first_token_again() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = Holder()
        request = runtime.access.acquire("a", holder, size_bytes=1, streams=True)
        await holder.wait("granted")
        assert holder.lease is not None
        runtime.access.give_back(holder.lease, "connection refused")
        await holder.wait("granted", "granted")
        assert {r.id for r in runtime.scheduler.model("a").awaiting_first_token} == {request}


async def test_leases_end_once() -> None:
    async with scripted_runtime(model("a")) as runtime:
        _, lease = await granted(runtime, "a")
        runtime.access.end(lease, Outcome.COMPLETED)
        runtime.access.end(lease, Outcome.CLIENT_GONE)
        assert not runtime.scheduler.model("a").in_flight


async def test_a_lost_request_is_tried_on_a_new_engine_if_the_old_one_is_dead() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder, lease = await granted(runtime, "a")
        runtime.engines["a"].health = Health.DEAD
        runtime.access.give_back(lease, "connection refused")
        await holder.wait("granted", "granted")
        assert runtime.scheduler.model("a").generation == 2


@pytest.mark.parametrize("health", [Health.ALIVE, Health.SILENT])
async def test_a_lost_request_is_tried_again_at_once_if_the_engine_lives(health: Health) -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder, lease = await granted(runtime, "a")
        runtime.engines["a"].health = health
        runtime.access.give_back(lease, "connection reset")
        await holder.wait("granted", "granted")
        assert runtime.scheduler.model("a").generation == 1


async def test_a_request_goes_to_an_engine_at_most_twice() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder, lease = await granted(runtime, "a")
        runtime.access.give_back(lease, "connection reset")
        await holder.wait("granted", "granted")
        assert holder.lease is not None
        runtime.access.give_back(holder.lease, "connection reset")
        await holder.wait("granted", "granted", "refused")
        assert isinstance(holder.error, EngineDied)
        assert "connection reset" in str(holder.error)


async def test_a_client_that_leaves_while_its_engine_is_asked_for_its_health() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder, lease = await granted(runtime, "a")
        runtime.access.give_back(lease, "connection reset")
        runtime.access.cancel(lease.request)
        async with asyncio.timeout(5):
            while runtime.scheduler.model("a").in_flight:
                await asyncio.sleep(0)
        assert holder.told == ["granted"]


@pytest.mark.parametrize(("health", "alive"), [(Health.ALIVE, True), (Health.SILENT, True), (Health.DEAD, False)])
async def test_confirm_alive(health: Health, alive: bool) -> None:
    async with scripted_runtime(model("a")) as runtime:
        _, lease = await granted(runtime, "a")
        runtime.engines["a"].health = health
        said: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        runtime.access.confirm_alive(lease, said.set_result)
        assert await said is alive


@pytest.mark.parametrize("first", [Health.ALIVE, Health.SILENT])
async def test_an_engine_that_does_not_say_at_once_that_it_is_dead_is_asked_again(first: Health) -> None:
    async with scripted_runtime(model("a")) as runtime:
        _, lease = await granted(runtime, "a")
        runtime.engines["a"].first_healths = [first]
        runtime.engines["a"].health = Health.DEAD
        said: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        runtime.access.confirm_alive(lease, said.set_result)
        assert await said is False


async def test_a_get_does_not_wake() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = Holder()
        runtime.access.acquire("a", holder, size_bytes=0, may_wake=False)
        assert holder.told == ["refused"]
        assert isinstance(holder.error, ModelNotLoaded)
        assert runtime.engines["a"].calls == []


async def test_waiting_has_an_end() -> None:
    limits = Limits(min_active_seconds=0.0, request_timeout_seconds=0.02)
    async with scripted_runtime(model("a"), limits=limits) as runtime:
        runtime.engines["a"].wake_gate.clear()
        holder = runtime.ask("a")
        await holder.wait("refused")
        assert isinstance(holder.error, QueueTimeout)
        assert holder.error.waited_seconds >= 0.02


async def test_a_get_whose_engine_died_does_not_start_it_again() -> None:
    async with scripted_runtime(model("a")) as runtime:
        _, lease = await granted(runtime, "a")
        runtime.access.end(lease, Outcome.COMPLETED)
        holder = Holder()
        runtime.access.acquire("a", holder, size_bytes=0, may_wake=False)
        runtime.engines["a"].health = Health.DEAD
        runtime.controller.engine_exited("a", "exit code 1")
        assert holder.lease is not None
        runtime.access.give_back(holder.lease, "its connection broke")
        await holder.wait("granted", "revoked", "refused")
        assert isinstance(holder.error, EngineDied)
        assert runtime.engines["a"].calls.count("wake") == 1
