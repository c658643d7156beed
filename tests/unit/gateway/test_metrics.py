"""The gateway's Prometheus metrics."""

from prometheus_client import CollectorRegistry, generate_latest

from llmux.gateway.metrics import HttpMetrics
from llmux.gateway.statistics import GatewayStatistics


def rendered(statistics: GatewayStatistics) -> list[str]:
    registry = CollectorRegistry()
    registry.register(HttpMetrics(statistics))
    return generate_latest(registry).decode().splitlines()


def test_names_labels_and_values_match_0_7_7() -> None:
    statistics = GatewayStatistics()
    counts = statistics.of(b"POST", "/v1/chat/completions")
    counts.pending += 3
    counts.finish(200, 0.02, 100)
    counts.finish(200, 60.0, 50)
    lines = rendered(statistics)
    where = 'endpoint="/v1/chat/completions",method="POST"'
    assert f'llmux_http_requests_total{{{where},status="200"}} 2.0' in lines
    assert f"llmux_http_requests_pending{{{where}}} 1.0" in lines
    assert f"llmux_http_response_body_size_count{{{where}}} 2.0" in lines
    assert f"llmux_http_response_body_size_sum{{{where}}} 150.0" in lines
    duration = "llmux_http_requests_duration_seconds"
    assert f'{duration}_sum{{{where},status="200"}} 60.02' in lines
    buckets = [line for line in lines if line.startswith(f"{duration}_bucket")]
    bounds = ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "+Inf"]
    numbers = [0, 0, *[1] * 9, 2]
    assert buckets == [
        f'{duration}_bucket{{endpoint="/v1/chat/completions",le="{bound}",method="POST",status="200"}} {number}.0'
        for bound, number in zip(bounds, numbers, strict=True)
    ]


def test_a_lack_of_descriptors_is_counted() -> None:
    assert "llmux_out_of_descriptors_total 3.0" in rendered(GatewayStatistics(engine_connection_shortages=3))


def test_invented_methods_share_one_series() -> None:
    statistics = GatewayStatistics()
    for method in (b"BREW", b"STEEP", b"GET"):
        counts = statistics.of(method, "other")
        counts.pending += 1
        counts.finish(404, 0.001, 0)
    totals = [line for line in rendered(statistics) if line.startswith("llmux_http_requests_total{")]
    assert totals == [
        'llmux_http_requests_total{endpoint="other",method="other",status="404"} 2.0',
        'llmux_http_requests_total{endpoint="other",method="GET",status="404"} 1.0',
    ]


def test_refused_connections_are_exposed() -> None:
    statistics = GatewayStatistics()
    statistics.connections_refused = 3
    assert "llmux_http_connections_refused_total 3.0" in rendered(statistics)
