"""The runtime's metrics: plain numbers while serving, Prometheus families at scrape.

Labels come from the configuration alone. Names are those of 0.7.7; its summaries are histograms here, and their
``from`` label stands on counters only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from llmux.core.actions import SwitchDone, SwitchFailed
from llmux.core.scheduler import Scheduler
from llmux.observability.histogram import Histogram

WAITED_SECONDS = 0.001
"""Above this a request counts as having waited."""

PHASES = ("cooldown", "drain", "sleep", "wake")


class CanaryCosts(Protocol):
    """What checking one model's answers has cost."""

    @property
    def checks(self) -> int:
        """How many wakes were checked."""

    @property
    def seconds(self) -> float:
        """How long asking took in all."""


class RuntimeMetrics:
    """Counts admissions and switches; a Prometheus collector too."""

    def __init__(self, models: Sequence[str], scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._queue_wait = {model: Histogram() for model in models}
        self._first_token = {model: Histogram() for model in models}
        self.at_once = dict.fromkeys(models, 0)
        """Requests per model that were admitted in the call in which they came; counted by the dispatcher itself."""
        self._not_waited = dict.fromkeys(models, 0)
        self._waited = dict.fromkeys(models, 0)
        self._switches: Counter[tuple[str, str]] = Counter()
        self._failures: Counter[str] = Counter()
        self._phases: dict[tuple[str, str], Histogram] = {}
        self._totals: dict[str, Histogram] = {}
        self._was_active: dict[str, None] = {}
        self._mismatches: Counter[tuple[str, str]] = Counter()
        self._canaries: Mapping[str, CanaryCosts] = {}

    def watch_canaries(self, canaries: Mapping[str, CanaryCosts]) -> None:
        """Report what these have cost, by their models' names."""
        self._canaries = canaries

    def admitted(self, model: str, waited_seconds: float) -> None:
        """A queued request was admitted."""
        self._queue_wait[model].observe(waited_seconds)
        counted = self._waited if waited_seconds > WAITED_SECONDS else self._not_waited
        counted[model] += 1

    def answered(self, model: str, seconds: float) -> None:
        """The first token of a streamed answer came so long after its request."""
        self._first_token[model].observe(seconds)

    def switch_done(self, done: SwitchDone) -> None:
        """A model came onto the GPU."""
        phases = (done.cooldown_seconds, done.drain_seconds, done.sleep_seconds, done.wake_seconds)
        self._switches[done.previous, done.model] += 1
        for phase, seconds in zip(PHASES, phases, strict=True):
            self._phases.setdefault((phase, done.model), Histogram()).observe(seconds)
        self._totals.setdefault(done.model, Histogram()).observe(done.total_seconds)
        self._was_active[done.model] = None

    def switch_failed(self, failed: SwitchFailed) -> None:
        """A model could not be brought onto the GPU."""
        self._failures[failed.model] += 1
        if failed.unfaithful is not None:
            self._mismatches[failed.model, str(failed.unfaithful)] += 1

    @property
    def switch_count(self) -> int:
        """How many switches have succeeded."""
        return self._switches.total()

    def collect(self) -> Iterator[Metric]:
        """Everything, in Prometheus's form."""
        yield from self._collect_switches()
        yield from self._collect_requests()
        yield from self._collect_canaries()
        active = GaugeMetricFamily(
            "llmux_active_model_info", "1 for the model that is active, 0 for those that were.", labels=["model"]
        )
        serving = self._scheduler.active_model()
        for model in self._was_active:
            active.add_metric([model], 1 if model == serving else 0)
        yield active

    def _collect_switches(self) -> Iterator[Metric]:
        switches = CounterMetricFamily("llmux_switches", "Switches that succeeded.", labels=["from", "to"])
        for (previous, model), number in self._switches.items():
            switches.add_metric([previous, model], number)
        yield switches
        failures = CounterMetricFamily("llmux_switch_failures", "Switches that failed.", labels=["to"])
        for model, number in self._failures.items():
            failures.add_metric([model], number)
        yield failures
        totals = HistogramMetricFamily("llmux_switch_total_seconds", "Duration of switches.", labels=["to"])
        for model, histogram in self._totals.items():
            totals.add_metric([model], histogram.buckets(), histogram.total)
        yield totals
        phases = HistogramMetricFamily(
            "llmux_switch_phase_seconds", "Duration of the phases of switches.", labels=["phase", "to"]
        )
        for (phase, model), histogram in self._phases.items():
            phases.add_metric([phase, model], histogram.buckets(), histogram.total)
        yield phases

    def _collect_requests(self) -> Iterator[Metric]:
        waits = HistogramMetricFamily(
            "llmux_request_queue_wait_seconds", "How long admitted requests waited for their model.", labels=["model"]
        )
        requests = CounterMetricFamily("llmux_requests", "Admitted requests.", labels=["model", "waited"])
        first = HistogramMetricFamily(
            "llmux_time_to_first_token_seconds",
            "From a streaming request's arrival to the first bytes of its answer.",
            labels=["model"],
        )
        in_flight = GaugeMetricFamily("llmux_in_flight", "Requests at the engine.", labels=["model"])
        depth = GaugeMetricFamily("llmux_queue_depth", "Requests waiting for the model.", labels=["model"])
        frozen = GaugeMetricFamily("llmux_frozen", "Requests suspended with their engine.", labels=["model"])
        for record in self._scheduler.models:
            model = record.name
            frozen.add_metric([model], len(record.frozen))
            histogram = self._queue_wait[model]
            at_once = self.at_once[model]
            buckets = [(bound, number + at_once) for bound, number in histogram.buckets()]
            waits.add_metric([model], buckets, histogram.total)
            first.add_metric([model], self._first_token[model].buckets(), self._first_token[model].total)
            requests.add_metric([model, "true"], self._waited[model])
            requests.add_metric([model, "false"], self._not_waited[model] + at_once)
            in_flight.add_metric([model], len(record.in_flight))
            depth.add_metric([model], len(record.queue))
        yield waits
        yield first
        yield requests
        yield in_flight
        yield depth
        yield frozen

    def _collect_canaries(self) -> Iterator[Metric]:
        checks = CounterMetricFamily(
            "llmux_canary_checks", "Wakes after which an answer was compared.", labels=["model"]
        )
        seconds = CounterMetricFamily("llmux_canary_seconds", "What asking the canaries has cost.", labels=["model"])
        mismatches = CounterMetricFamily(
            "llmux_canary_mismatches", "Wakes after which the answer was another.", labels=["model", "eviction"]
        )
        for model, canary in self._canaries.items():
            checks.add_metric([model], canary.checks)
            seconds.add_metric([model], canary.seconds)
        for (model, eviction), number in self._mismatches.items():
            mismatches.add_metric([model, eviction], number)
        yield checks
        yield seconds
        yield mismatches
