"""The counters of requests."""

import pytest

from llmux.gateway.statistics import GatewayStatistics


def test_a_bucket_includes_its_upper_bound() -> None:
    counts = GatewayStatistics().of(b"POST", "/v1/completions")
    for seconds in (0.0, 0.005, 0.006, 10.0, 11.0):
        counts.pending += 1
        counts.finish(200, seconds, 7)
    durations = counts.durations[200]
    assert durations.count == 5
    assert durations.total == pytest.approx(21.011)
    assert [count for _, count in durations.buckets()][:2] == [2.0, 3.0]
    assert (counts.pending, counts.finished, counts.body_bytes) == (0, 5, 35)


def test_unknown_methods_share_one_counter() -> None:
    statistics = GatewayStatistics()
    first = statistics.of(b"PROPFIND", "other")
    assert first is statistics.of(b"", "other") is statistics.of(b"MKCOL", "other")
    assert first.method == "other"
    assert statistics.of(b"GET", "other") is not first
    assert len(statistics.endpoints) == 2
