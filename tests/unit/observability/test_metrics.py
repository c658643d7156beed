"""What is counted, as Prometheus sees it."""

from prometheus_client import CollectorRegistry, generate_latest

from llmux.core.actions import StepDownReason, SteppedDown, SwitchDone, SwitchFailed
from llmux.core.eviction import STOP, Eviction
from llmux.core.policies.fifo import Fifo
from llmux.core.request import Priority, Request
from llmux.core.scheduler import Scheduler
from llmux.core.settings import ModelSpec
from llmux.core.target import Target, Targets
from llmux.observability.metrics import LogMetrics, RuntimeMetrics, Stalls


def metrics_of(*models: str) -> RuntimeMetrics:
    return RuntimeMetrics(dict.fromkeys(models, Targets()), Scheduler([ModelSpec(name) for name in models], Fifo()))


def exposed(metrics: RuntimeMetrics) -> list[str]:
    registry = CollectorRegistry()
    registry.register(metrics)
    return generate_latest(registry).decode().splitlines()


def admitted(queue_seconds: float, forecast_seconds: float | None = None) -> Request:
    """A request that has been queued for so long, and was expected to be so."""
    request = Request(1, "a")
    request.attempts = 1
    request.queue_seconds, request.forecast_seconds = queue_seconds, forecast_seconds
    return request


def test_forecasts_are_counted_by_whether_they_were_right() -> None:
    metrics = metrics_of("a")
    for waited, forecast in ((10.0, 9.0), (10.0, 11.5), (10.0, 2.0), (10.0, 30.0), (10.0, None)):
        metrics.admitted(admitted(waited, forecast))
    returned = admitted(10.0, 10.0)
    returned.attempts = 2
    metrics.admitted(returned)
    lines = exposed(metrics)
    assert 'llmux_wait_forecasts_total{forecast="right",model="a"} 2.0' in lines
    assert 'llmux_wait_forecasts_total{forecast="too_short",model="a"} 1.0' in lines
    assert 'llmux_wait_forecasts_total{forecast="too_long",model="a"} 1.0' in lines


def test_admissions_are_counted_by_whether_they_waited() -> None:
    metrics = metrics_of("a", "b")
    metrics.watch_admissions({"a": 1, "b": 0}.__getitem__)
    metrics.admitted(admitted(0.0005))
    metrics.admitted(admitted(3.0))
    lines = exposed(metrics)
    assert 'llmux_requests_total{model="a",waited="false"} 2.0' in lines
    assert 'llmux_requests_total{model="a",waited="true"} 1.0' in lines
    assert 'llmux_requests_total{model="b",waited="true"} 0.0' in lines
    assert 'llmux_request_queue_wait_seconds_count{model="a"} 3.0' in lines
    assert 'llmux_request_queue_wait_seconds_bucket{le="0.001",model="a"} 2.0' in lines
    assert 'llmux_request_queue_wait_seconds_sum{model="a"} 3.0005' in lines


def test_a_switch_has_four_phases_and_a_direction() -> None:
    metrics = metrics_of("a", "b")
    metrics.switch_done(SwitchDone("", "a", 0.0, 0.0, 0.0, 20.0))
    metrics.switch_done(SwitchDone("a", "b", 1.0, 2.0, 3.0, 4.0))
    metrics.switch_failed(SwitchFailed("a", "why"))
    lines = exposed(metrics)
    assert 'llmux_switches_total{from="",to="a"} 1.0' in lines
    assert 'llmux_switches_total{from="a",to="b"} 1.0' in lines
    assert 'llmux_switch_failures_total{to="a"} 1.0' in lines
    for phase, seconds in (("cooldown", 1.0), ("drain", 2.0), ("sleep", 3.0), ("wake", 4.0)):
        assert f'llmux_switch_phase_seconds_sum{{phase="{phase}",to="b"}} {seconds}' in lines
    assert 'llmux_switch_total_seconds_sum{to="b"} 10.0' in lines
    assert 'llmux_active_model_info{model="a"} 0.0' in lines


def test_dropped_lines_are_counted_by_log() -> None:
    registry = CollectorRegistry()
    registry.register(LogMetrics({"stderr": lambda: 3, "access_log": lambda: 0}))
    lines = generate_latest(registry).decode().splitlines()
    assert 'llmux_log_lines_dropped_total{log="stderr"} 3.0' in lines
    assert 'llmux_log_lines_dropped_total{log="access_log"} 0.0' in lines


def test_stalls_are_counted_per_model() -> None:
    metrics = metrics_of("a", "b")
    stalls = {"a": Stalls(), "b": Stalls()}
    metrics.watch_stalls(stalls)
    stalls["a"].note("it hangs")
    lines = exposed(metrics)
    assert 'llmux_engine_stalls_total{model="a"} 1.0' in lines
    assert 'llmux_engine_stalls_total{model="b"} 0.0' in lines


def test_times_of_memory_pressure_are_counted():
    metrics = metrics_of("a")
    assert "llmux_gpu_memory_pressures_total 0.0" in exposed(metrics)
    metrics.memory_pressure_began()
    assert "llmux_gpu_memory_pressures_total 1.0" in exposed(metrics)


def answer(
    ttft_seconds: float | None,
    paused_seconds: float = 0.0,
    priority: Priority = Priority.INTERACTIVE,
    *,
    streams: bool = True,
) -> Request:
    request = Request(1, "a", priority=priority, streams=streams)
    request.ttft_seconds, request.paused_seconds = ttft_seconds, paused_seconds
    return request


def test_streams_are_on_time_by_the_target_of_their_model_and_class() -> None:
    targets = {"a": Targets(Target(2.0), Target(60.0)), "b": Targets()}
    metrics = RuntimeMetrics(targets, Scheduler([ModelSpec(name) for name in targets], Fifo()))
    metrics.ended(answer(1.5), complete=True)
    metrics.ended(answer(1.5, 1.0), complete=True)
    metrics.ended(answer(1.5), complete=False)
    metrics.ended(answer(None), complete=False)
    metrics.ended(answer(50.0, 9.0, Priority.BATCH), complete=True)
    metrics.ended(answer(None, streams=False), complete=True)
    lines = exposed(metrics)
    assert 'llmux_streams_total{class="interactive",model="a",on_time="true"} 1.0' in lines
    assert 'llmux_streams_total{class="interactive",model="a",on_time="false"} 3.0' in lines
    assert 'llmux_streams_total{class="batch",model="a",on_time="true"} 1.0' in lines
    assert 'llmux_streams_total{class="batch",model="a",on_time="false"} 0.0' in lines
    assert 'llmux_streams_total{class="interactive",model="b",on_time="true"} 0.0' in lines


def test_host_memory_of_sleepers_and_their_steps_down() -> None:
    metrics = metrics_of("a")
    metrics.stepped_down(SteppedDown("a", Eviction.parse("offload+keep_running"), STOP, StepDownReason.IDLE))
    lines = exposed(metrics)
    assert 'llmux_host_memory_bytes{model="a"} 0.0' in lines
    assert 'llmux_steps_down_total{eviction="retain+stop",model="a",reason="idle"} 1.0' in lines


def test_overload_is_told_while_it_lasts() -> None:
    class Episodes:
        seconds: float | None = 90.0
        episodes = 2
        offered_load: float | None = 1.4

    metrics, episodes = metrics_of("a"), Episodes()
    assert "llmux_overload_seconds 0.0" in exposed(metrics)
    metrics.watch_overload(episodes)
    lines = exposed(metrics)
    assert "llmux_overload_seconds 90.0" in lines
    assert "llmux_overload_episodes_total 2.0" in lines
    assert "llmux_offered_load 1.4" in lines
    episodes.seconds = episodes.offered_load = None
    lines = exposed(metrics)
    assert "llmux_overload_seconds 0.0" in lines
    assert not [line for line in lines if line.startswith("llmux_offered_load ")]
