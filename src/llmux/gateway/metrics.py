"""The gateway's counters as Prometheus metrics, under the names that 0.7.7 gave them."""

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from llmux.gateway.statistics import GatewayStatistics

LABELS = ("method", "endpoint")


class HttpMetrics:
    """A Prometheus collector that reads the gateway's statistics."""

    def __init__(self, statistics: GatewayStatistics) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "llmux_http_requests", "Requests finished.", labels=("method", "status", "endpoint")
        )
        durations = HistogramMetricFamily(
            "llmux_http_requests_duration_seconds",
            "From the end of the request's head to the end of the answer.",
            labels=("method", "status", "endpoint"),
        )
        pending = GaugeMetricFamily("llmux_http_requests_pending", "Requests in progress.", labels=LABELS)
        sizes = SummaryMetricFamily("llmux_http_response_body_size", "Size of answer bodies in bytes.", labels=LABELS)
        for counts in list(self._statistics.endpoints.values()):
            where = (counts.method, counts.endpoint)
            pending.add_metric(where, counts.pending)
            sizes.add_metric(where, counts.finished, counts.body_bytes)
            for status, histogram in counts.durations.items():
                labels = (counts.method, str(status), counts.endpoint)
                requests.add_metric(labels, histogram.count)
                durations.add_metric(labels, histogram.buckets(), histogram.total)
        yield CounterMetricFamily(
            "llmux_http_connections_refused",
            "Connections refused because too many were open.",
            value=self._statistics.connections_refused,
        )
        yield CounterMetricFamily(
            "llmux_out_of_descriptors",
            "Attempts to connect to an engine for which llmux lacked a file descriptor, memory or a port.",
            value=self._statistics.engine_connection_shortages,
        )
        yield requests
        yield durations
        yield pending
        yield sizes
