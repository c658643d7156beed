"""The gateway's plain counts as Prometheus families, under 0.7.7's names."""

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
    """A collector over the gateway's statistics."""

    def __init__(self, statistics: GatewayStatistics) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """Everything, in Prometheus's form."""
        requests = CounterMetricFamily(
            "llmux_http_requests", "Answered requests.", labels=("method", "status", "endpoint")
        )
        durations = HistogramMetricFamily(
            "llmux_http_requests_duration_seconds",
            "From a request's head to its answer's end.",
            labels=("method", "status", "endpoint"),
        )
        pending = GaugeMetricFamily("llmux_http_requests_pending", "Requests under way.", labels=LABELS)
        sizes = SummaryMetricFamily("llmux_http_response_body_size", "Bytes of answers.", labels=LABELS)
        for counts in list(self._statistics.endpoints.values()):
            where = (counts.method, counts.endpoint)
            pending.add_metric(where, counts.pending)
            sizes.add_metric(where, counts.finished, counts.body_bytes)
            for status, histogram in counts.durations.items():
                labels = (counts.method, str(status), counts.endpoint)
                requests.add_metric(labels, histogram.count)
                durations.add_metric(labels, histogram.buckets(), histogram.total)
        yield requests
        yield durations
        yield pending
        yield sizes
