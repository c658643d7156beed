"""Counters of requests and connections: plain integers on the request path, rendered only when scraped."""

from dataclasses import dataclass, field

from llmux.observability.histogram import Histogram

DURATION_BOUNDS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CLIENT_GONE_STATUS = 499
"""Counted for a request whose client left before its answer was complete."""

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class EndpointCounts:
    """The requests of one method and endpoint, with their durations by status."""

    __slots__ = ("body_bytes", "durations", "endpoint", "method", "pending")

    def __init__(self, method: str, endpoint: str) -> None:
        self.method = method
        self.endpoint = endpoint
        self.pending = 0
        self.body_bytes = 0
        self.durations: dict[int, Histogram] = {}

    def finish(self, status: int, seconds: float, body_bytes: int) -> None:
        """Count the end of a request that was pending."""
        self.pending -= 1
        self.body_bytes += body_bytes
        durations = self.durations.get(status)
        if durations is None:
            durations = self.durations[status] = Histogram(DURATION_BOUNDS_SECONDS)
        durations.observe(seconds)

    @property
    def finished(self) -> int:
        """How many requests have ended, of any status. Counted where metrics are read, not for every request."""
        return sum(histogram.count for histogram in self.durations.values())

    def count(self, status: int, seconds: float, body_bytes: int) -> None:
        """Count a request that was answered at once."""
        self.pending += 1
        self.finish(status, seconds, body_bytes)


@dataclass(slots=True)
class GatewayStatistics:
    """All counters. Methods and endpoints come from closed sets, so the number of series is bounded."""

    endpoints: dict[tuple[bytes, str], EndpointCounts] = field(default_factory=dict)
    connections_accepted: int = 0
    connections_refused: int = 0
    engine_connections_opened: int = 0
    engine_connections_failed: int = 0
    engine_connection_shortages: int = 0
    """Attempts that failed for want of a file descriptor, memory or a port of llmux's own."""
    engine_retries: int = 0

    def of(self, method: bytes, endpoint: str) -> EndpointCounts:
        """The counters of a method, as spelt in the request, and an endpoint, as labelled by its route."""
        counts = self.endpoints.get((method, endpoint))
        if counts is None:
            name = method.decode("latin-1")
            if name not in _METHODS:
                method, name = b"other", "other"
                counts = self.endpoints.get((method, endpoint))
            if counts is None:
                counts = self.endpoints[method, endpoint] = EndpointCounts(name, endpoint)
        return counts
