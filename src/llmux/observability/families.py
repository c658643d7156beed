"""The metric families of prometheus_client, which is imported at the first scrape: llmux listens before."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily as CounterMetricFamily
    from prometheus_client.core import GaugeMetricFamily as GaugeMetricFamily
    from prometheus_client.core import HistogramMetricFamily as HistogramMetricFamily
else:

    def __getattr__(name: str) -> Any:
        from prometheus_client import core

        return getattr(core, name)
