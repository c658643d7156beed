import asyncio

import pytest

from llmux.access import Outcome
from llmux.core.forecast import Forecaster
from llmux.core.settings import Limits
from llmux.core.switch_costs import UNKNOWN_SECONDS
from llmux.errors import EngineDied, FailureReason, ModelNotLoaded, QueueFull, QueueTimeout
from llmux.instances.health import Health
from llmux.runtime import answered as answered_requests
from tests.support.processes import until
from tests.support.scripted import Holder, Runtime, model, scripted_runtime
from tests.support.skips import replaces_compiled_code


async def admitted(runtime: Runtime, name: str, **more: object) -> Holder:
    holder = runtime.ask(name, **more)
    await holder.wait("admitted")
    return holder


async def test_a_serving_model_admits_within_the_call() -> None:
    async with scripted_runtime(model("a")) as runtime:
        await admitted(runtime, "a")
        second = runtime.ask("a")
        assert second.calls == ["admitted"]
        assert (second.request.queue_seconds, second.request.switch_seconds) == (0.0, None)
        assert second.upstream == runtime.engines["a"].upstream
        assert len(runtime.scheduler.model("a").in_flight) == 2


async def test_a_lease_after_a_switch_carries_its_cost() -> None:
    async with scripted_runtime(model("a")) as runtime:
        request = (await admitted(runtime, "a")).request
        assert request.switch_seconds is not None
        assert 0 <= request.switch_seconds <= request.queue_seconds


async def test_a_request_that_is_queued_carries_how_long_that_was_expected_to_take() -> None:
    async with scripted_runtime(model("a")) as runtime:
        first = (await admitted(runtime, "a")).request
        # Nothing was known of its starts.
        assert first.forecast_seconds == pytest.approx(UNKNOWN_SECONDS, abs=1.0)
        assert (await admitted(runtime, "a")).request.forecast_seconds is None
        families = {family.name: family for family in runtime.metrics.collect()}
        [sample] = families["llmux_wait_forecasts"].samples
        assert (sample.labels, sample.value) == ({"model": "a", "forecast": "too_long"}, 1)


async def test_who_waits_is_told_the_position_until_the_lease() -> None:
    async with scripted_runtime(model("a")) as runtime:
        runtime.engines["a"].wake_gate.clear()
        first, second = runtime.ask("a"), runtime.ask("a")
        found = [runtime.access.outlook(holder.request) for holder in (first, second)]
        assert [one and one.position for one in found] == [1, 2]
        assert all(one is not None and one.seconds is not None for one in found)
        runtime.engines["a"].wake_gate.set()
        await first.wait("admitted")
        assert runtime.access.outlook(first.request) is None


@replaces_compiled_code
async def test_a_fault_in_the_forecast_costs_no_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Forecaster, "_forecast", fail)
    async with scripted_runtime(model("a"), limits=Limits(queue_limit_requests=2)) as runtime:
        runtime.engines["a"].wake_gate.clear()
        waiting = [runtime.ask("a") for _ in range(2)]
        assert runtime.access.outlook(waiting[0].request) is None
        refused = runtime.ask("a")
        assert isinstance(refused.error, QueueFull)
        assert refused.error.forecast_seconds is None
        assert runtime.operations.status().forecasts == {}
        runtime.engines["a"].wake_gate.set()
        for holder in waiting:
            await holder.wait("admitted")
            assert holder.request.forecast_seconds is None
    # Once where requests are served, and once where the status is asked for.
    assert capsys.readouterr().out.count("a forecast failed") == 2


async def test_what_is_refused_for_want_of_room_says_when_there_may_be_some() -> None:
    async with scripted_runtime(model("a"), limits=Limits(queue_limit_requests=1)) as runtime:
        runtime.engines["a"].wake_gate.clear()
        runtime.ask("a")
        error = runtime.ask("a").error
        assert isinstance(error, QueueFull)
        assert error.forecast_seconds is not None
        assert 0 < error.forecast_seconds <= UNKNOWN_SECONDS
        runtime.engines["a"].wake_gate.set()


async def test_a_client_that_leaves_while_waiting_is_no_demand() -> None:
    async with scripted_runtime(model("a"), model("b")) as runtime:
        holder = await admitted(runtime, "a")
        waiting = runtime.ask("b")
        runtime.access.cancel(waiting.request)
        runtime.access.cancel(waiting.request)
        assert runtime.ask("a").calls == ["admitted"]
        assert (waiting.calls, runtime.engines["b"].calls) == ([], [])
        assert holder.calls == ["admitted"]


def first_tokens(runtime: Runtime) -> float:
    """How many the metrics have counted."""
    families = {family.name: family for family in runtime.metrics.collect()}
    samples = families["llmux_time_to_first_token_seconds"].samples
    return sum(sample.value for sample in samples if sample.name.endswith("_count"))


@pytest.mark.parametrize("at_once", [False, True])
async def test_the_first_token_of_a_streamed_answer_is_reported(at_once: bool) -> None:
    async with scripted_runtime(model("a")) as runtime:
        if at_once:
            await admitted(runtime, "a")
        record = runtime.scheduler.model("a")
        request = (await admitted(runtime, "a", streams=True)).request
        assert (record.awaiting_first_token, first_tokens(runtime)) == ({request}, 0)
        runtime.access.first_token(request)
        assert (record.awaiting_first_token, first_tokens(runtime)) == (set(), 1)
        assert request in record.in_flight


async def test_a_streaming_request_that_is_tried_again_waits_for_its_first_token_again() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = await admitted(runtime, "a", streams=True)
        runtime.give_back(holder, "connection refused")
        await holder.wait("admitted", "admitted")
        assert runtime.scheduler.model("a").awaiting_first_token == {holder.request}


def streams(runtime: Runtime) -> tuple[int, int]:
    """How many were on time, and how many were not."""
    shown = runtime.operations.model_status("a")
    return shown.streams_on_time, shown.streams_late


@pytest.mark.parametrize(
    ("outcome", "counted"),
    [(Outcome.COMPLETED, (1, 0)), (Outcome.BROKEN, (0, 1)), (Outcome.CLIENT_GONE, (0, 0))],
)
async def test_whether_a_stream_was_on_time_is_counted_at_its_end(outcome: Outcome, counted: tuple[int, int]) -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = await admitted(runtime, "a", streams=True)
        runtime.access.first_token(holder.request)
        assert streams(runtime) == (0, 0)
        runtime.access.end(holder.request, outcome)
        assert streams(runtime) == counted


async def test_a_stream_that_is_tried_again_is_counted_once() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = await admitted(runtime, "a", streams=True)
        runtime.engines["a"].health = Health.DEAD
        runtime.give_back(holder, "connection refused")
        await holder.wait("admitted", "admitted")
        assert streams(runtime) == (0, 0)
        runtime.give_back(holder, "connection refused")
        await holder.wait("admitted", "admitted", "rejected")
        assert streams(runtime) == (0, 1)


async def test_leases_end_once() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = await admitted(runtime, "a")
        runtime.access.end(holder.request, Outcome.COMPLETED)
        runtime.access.end(holder.request, Outcome.CLIENT_GONE)
        assert not runtime.scheduler.model("a").in_flight


async def test_a_lost_request_is_tried_on_a_new_engine_if_the_old_one_is_dead() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = await admitted(runtime, "a")
        runtime.engines["a"].health = Health.DEAD
        runtime.give_back(holder, "connection refused")
        await holder.wait("admitted", "admitted")
        assert runtime.scheduler.model("a").generation == 2


@pytest.mark.parametrize("health", [Health.ALIVE, Health.SILENT])
async def test_a_lost_request_is_tried_again_at_once_if_the_engine_lives(health: Health) -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = await admitted(runtime, "a")
        runtime.engines["a"].health = health
        runtime.give_back(holder, "connection reset")
        await holder.wait("admitted", "admitted")
        assert runtime.scheduler.model("a").generation == 1


async def test_a_request_goes_to_an_engine_at_most_twice() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = await admitted(runtime, "a")
        runtime.give_back(holder, "connection reset")
        await holder.wait("admitted", "admitted")
        runtime.give_back(holder, "connection reset")
        await holder.wait("admitted", "admitted", "rejected")
        assert isinstance(holder.error, EngineDied)
        assert "connection reset" in str(holder.error)


async def test_a_client_that_leaves_while_its_engine_is_asked_for_its_health() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = await admitted(runtime, "a")
        runtime.give_back(holder, "connection reset")
        runtime.access.cancel(holder.request)
        async with asyncio.timeout(5):
            while runtime.scheduler.model("a").in_flight:
                await asyncio.sleep(0)
        assert holder.calls == ["admitted"]


@pytest.mark.parametrize(("health", "alive"), [(Health.ALIVE, True), (Health.SILENT, True), (Health.DEAD, False)])
async def test_confirm_alive(health: Health, alive: bool) -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = await admitted(runtime, "a")
        runtime.engines["a"].health = health
        said: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        runtime.access.confirm_alive(holder.request, said.set_result)
        assert await said is alive


@pytest.mark.parametrize("first", [Health.ALIVE, Health.SILENT])
async def test_an_engine_that_does_not_say_at_once_that_it_is_dead_is_asked_again(first: Health) -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = await admitted(runtime, "a")
        runtime.engines["a"].first_healths = [first]
        runtime.engines["a"].health = Health.DEAD
        said: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        runtime.access.confirm_alive(holder.request, said.set_result)
        assert await said is False


async def test_a_get_does_not_wake() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = runtime.ask("a", may_wake=False)
        assert holder.calls == ["rejected"]
        assert isinstance(holder.error, ModelNotLoaded)
        assert runtime.engines["a"].calls == []


async def test_waiting_has_an_end() -> None:
    limits = Limits(min_active_seconds=0.0, request_timeout_seconds=0.02)
    async with scripted_runtime(model("a"), limits=limits) as runtime:
        runtime.engines["a"].wake_gate.clear()
        holder = runtime.ask("a")
        await holder.wait("rejected")
        assert isinstance(holder.error, QueueTimeout)
        assert holder.error.waited_seconds >= 0.02


async def test_a_get_whose_engine_died_does_not_start_it_again() -> None:
    async with scripted_runtime(model("a")) as runtime:
        holder = await admitted(runtime, "a")
        runtime.access.end(holder.request, Outcome.COMPLETED)
        holder = runtime.ask("a", may_wake=False)
        runtime.engines["a"].health = Health.DEAD
        runtime.controller.engine_exited("a", FailureReason("exit code 1"))
        runtime.give_back(holder, "its connection broke")
        await holder.wait("admitted", "revoked", "rejected")
        assert isinstance(holder.error, EngineDied)
        assert runtime.engines["a"].calls.count("wake") == 1


async def answered(runtime: Runtime, **more: object) -> Holder:
    """A request whose answer has ended."""
    holder = await admitted(runtime, "a", **more)
    runtime.access.end(holder.request, Outcome.COMPLETED)
    return holder


def polls(runtime: Runtime) -> int:
    return runtime.engines["a"].calls.count("has work")


@pytest.fixture
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered_requests, "POLL_SECONDS", 0.001)


@pytest.mark.usefixtures("_quick_polls")
async def test_a_request_stays_in_flight_until_the_engine_has_no_work() -> None:
    async with scripted_runtime(model("a"), works_after_answering=True) as runtime:
        engine, record = runtime.engines["a"], runtime.scheduler.model("a")
        engine.is_working = True
        first = await answered(runtime)
        await until(lambda: polls(runtime) > 2, "some polls")
        second = await answered(runtime)
        assert record.in_flight == {first.request, second.request}
        assert runtime.access.progress_of(first.request) is None, "silence says nothing about the engine"
        engine.is_working = False
        await until(lambda: not record.in_flight, "the end of both")
        asked = polls(runtime)
        await answered(runtime)
        await until(lambda: not record.in_flight, "the end of a third")
        assert polls(runtime) == asked + 1, "one poller asks, and only while there is something to ask about"


async def test_a_request_that_wakes_nothing_starts_no_work() -> None:
    async with scripted_runtime(model("a"), works_after_answering=True) as runtime:
        await answered(runtime)
        await until(lambda: not runtime.scheduler.model("a").in_flight, "the end of the first")
        before = polls(runtime)
        await answered(runtime, may_wake=False)
        assert not runtime.scheduler.model("a").in_flight
        assert polls(runtime) == before


async def test_a_drains_deadline_ends_work_that_goes_on() -> None:
    limits = Limits(min_active_seconds=0.0, drain_timeout_seconds=0.05)
    async with scripted_runtime(model("a"), model("b"), limits=limits, works_after_answering=True) as runtime:
        runtime.engines["a"].is_working = True
        await answered(runtime)
        waiting = runtime.ask("b")
        await waiting.wait("admitted")
        assert not runtime.scheduler.model("a").in_flight
        runtime.access.end(waiting.request, Outcome.COMPLETED)


@pytest.mark.usefixtures("_quick_polls")
async def test_a_switch_waits_for_work_that_goes_on() -> None:
    async with scripted_runtime(model("a"), model("b"), works_after_answering=True) as runtime:
        runtime.engines["a"].is_working = True
        await answered(runtime)
        waiting = runtime.ask("b")
        before = polls(runtime)
        await until(lambda: polls(runtime) > before + 2, "some polls")
        assert waiting.calls == []
        runtime.engines["a"].is_working = False
        await waiting.wait("admitted")
