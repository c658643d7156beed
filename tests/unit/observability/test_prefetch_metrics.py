"""What was read ahead, and what it was good for, as Prometheus sees it."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from llmux.observability.prefetch_metrics import Found, PrefetchCounts, PrefetchMetrics, Reason

MIB = 1 << 20


@pytest.mark.parametrize(
    ("cached_mib", "read_mib", "found", "used_mib"),
    [
        (100, 100, Found.HIT, 100),
        (96, 100, Found.HIT, 96),
        (100, 10, Found.HIT, 10),
        (60, 100, Found.PARTIAL, 60),
        (60, 20, Found.PARTIAL, 20),
        (100, 0, Found.WARM, 0),
        (60, 0, Found.MISS, 0),
        (0, 100, Found.MISS, 0),
    ],
)
def test_what_a_wake_finds(cached_mib: int, read_mib: int, found: Found, used_mib: int) -> None:
    counts = PrefetchCounts()
    counts.wake(cached_mib * MIB, 100 * MIB, read_mib * MIB, read_seconds=2.0)
    assert counts.wakes == {found: 1}
    assert counts.used_bytes == used_mib * MIB
    assert counts.saved_seconds == pytest.approx(2.0 * used_mib / (read_mib or 1))


def test_the_text_that_prometheus_reads() -> None:
    counts = PrefetchCounts(used_bytes=5, saved_seconds=1.5)
    counts.read_bytes[Reason.QUEUED] = 7
    counts.wakes[Found.HIT] = 2
    registry = CollectorRegistry()
    registry.register(PrefetchMetrics({"a": counts}))
    lines = generate_latest(registry).decode().splitlines()
    assert 'llmux_prefetch_read_bytes_total{model="a",reason="queued"} 7.0' in lines
    assert 'llmux_prefetch_read_bytes_total{model="a",reason="predicted"} 0.0' in lines
    assert 'llmux_prefetch_used_bytes_total{model="a"} 5.0' in lines
    assert 'llmux_prefetch_saved_seconds_total{model="a"} 1.5' in lines
    assert 'llmux_prefetch_wakes_total{found="hit",model="a"} 2.0' in lines
    assert 'llmux_prefetch_wakes_total{found="miss",model="a"} 0.0' in lines
