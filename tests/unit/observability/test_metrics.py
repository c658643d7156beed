"""What is counted, as Prometheus sees it."""

from prometheus_client import CollectorRegistry, generate_latest

from llmux.core.actions import SwitchDone, SwitchFailed
from llmux.core.policies.fifo import Fifo
from llmux.core.scheduler import Scheduler
from llmux.core.settings import ModelSpec
from llmux.observability.metrics import LogMetrics, RuntimeMetrics, Stalls


def metrics_of(*models: str) -> RuntimeMetrics:
    return RuntimeMetrics(models, Scheduler([ModelSpec(name) for name in models], Fifo()))


def exposed(metrics: RuntimeMetrics) -> list[str]:
    registry = CollectorRegistry()
    registry.register(metrics)
    return generate_latest(registry).decode().splitlines()


def test_admissions_are_counted_by_whether_they_waited() -> None:
    metrics = metrics_of("a", "b")
    metrics.watch_admissions({"a": 1, "b": 0})
    metrics.admitted("a", 0.0005)
    metrics.admitted("a", 3.0)
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
