"""The runtime's metrics: plain numbers while serving, rendered as Prometheus families at scrape.

Names are those of 0.7.7. Its summaries are histograms here, without the label ``from``: with 40 models, a histogram per
pair of models made a scrape of 9 MB that blocked the event loop for a second. Label values come from the configuration,
never from requests, so that clients cannot create series.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llmux.core.actions import SteppedDown, SwitchDone, SwitchFailed
from llmux.core.forecast import Truth, judge
from llmux.core.request import Priority, Request
from llmux.core.scheduler import Scheduler
from llmux.core.target import Targets
from llmux.observability import families
from llmux.observability.histogram import Histogram

if TYPE_CHECKING:
    from prometheus_client.core import Metric

WAITED_SECONDS = 0.001
"""A request that waited longer counts as ``waited="true"``: less is the event loop's own latency."""

PHASES = ("cooldown", "drain", "sleep", "wake")


class CanaryCosts(Protocol):
    """What the canary checks of one model have cost."""

    @property
    def checks(self) -> int:
        """The number of wakes that were checked."""

    @property
    def seconds(self) -> float:
        """The total duration of the checks."""


class OverloadEpisodes(Protocol):
    """Times at which more was asked of the GPUs than they can do."""

    @property
    def seconds(self) -> float | None:
        """For how long the present one has lasted; None while there is none."""

    @property
    def episodes(self) -> int:
        """How many there have been."""

    @property
    def offered_load(self) -> float | None:
        """What is asked of the GPUs, as a multiple of what they can do; None before enough was seen."""


class LogMetrics:
    """The Prometheus collector for lines that were dropped, by the log that they were meant for."""

    def __init__(self, dropped: Mapping[str, Callable[[], int]]) -> None:
        self._dropped = dropped

    def collect(self) -> "Iterator[Metric]":
        """All metrics, as Prometheus families."""
        dropped = families.CounterMetricFamily(
            "llmux_log_lines_dropped", "Lines that could not be written to a log in time.", labels=["log"]
        )
        for name, lines in self._dropped.items():
            dropped.add_metric([name], lines())
        yield dropped


@dataclass(slots=True)
class Stalls:
    """How often one model's engine hung and was killed, and what was seen the last time."""

    count: int = 0
    last: str | None = None

    def note(self, reason: str) -> None:
        """Count one more."""
        self.count += 1
        self.last = reason


class Streams:
    """How many of one model's streamed answers were on time, by the class of the request.

    Those that were refused or cut off were not. Those whose client left are not counted.
    """

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self.on_time: Counter[Priority] = Counter()
        self.late: Counter[Priority] = Counter()

    def ended(self, request: Request, *, complete: bool) -> None:
        """Count one more. It is on time by what is known without counting tokens."""
        ttft_seconds, target = request.ttft_seconds, self._targets.of(request.priority)
        if complete and ttft_seconds is not None and target.is_met(ttft_seconds, request.paused_seconds):
            self.on_time[request.priority] += 1
        else:
            self.late[request.priority] += 1


class RuntimeMetrics:
    """Counts admissions and switches, and is the Prometheus collector for them."""

    def __init__(self, models: Mapping[str, Targets], scheduler: Scheduler) -> None:
        """``models`` says of each when its streamed answers are on time."""
        self._scheduler = scheduler
        self.streams = {model: Streams(targets) for model, targets in models.items()}
        self._queue_wait = {model: Histogram() for model in models}
        self._first_token = {model: Histogram() for model in models}
        self._admitted_at_once: Callable[[str], int] = lambda _model: 0
        self._not_waited = dict.fromkeys(models, 0)
        self._waited = dict.fromkeys(models, 0)
        self._forecasts: Counter[tuple[str, Truth]] = Counter()
        self._switches: Counter[tuple[str, str]] = Counter()
        self._failures: Counter[str] = Counter()
        self._phases: dict[tuple[str, str], Histogram] = {}
        self._totals: dict[str, Histogram] = {}
        self._was_active: dict[str, None] = {}
        self._mismatches: Counter[tuple[str, str]] = Counter()
        self._canaries: Mapping[str, CanaryCosts] = {}
        self._stalls: Mapping[str, Stalls] = {}
        self._overload: OverloadEpisodes | None = None
        self._memory_pressures = 0
        self._steps: Counter[tuple[str, str, str]] = Counter()

    def watch_canaries(self, canaries: Mapping[str, CanaryCosts]) -> None:
        """Read these at scrape; keys are models."""
        self._canaries = canaries

    def watch_stalls(self, stalls: Mapping[str, Stalls]) -> None:
        """Read these at scrape; keys are models."""
        self._stalls = stalls

    def watch_overload(self, overload: OverloadEpisodes) -> None:
        """Read this at scrape."""
        self._overload = overload

    def watch_admissions(self, admitted_at_once: Callable[[str], int]) -> None:
        """Ask at scrape how many requests of a model were admitted without being queued."""
        self._admitted_at_once = admitted_at_once

    def admitted(self, request: Request) -> None:
        """Count a request that was admitted from the queue. Others are counted as ``watch_admissions`` says."""
        model, waited_seconds = request.model, request.queue_seconds
        if request.attempts == 1 and request.forecast_seconds is not None:
            self._forecasts[model, judge(request.forecast_seconds, waited_seconds)] += 1
        self._queue_wait[model].observe(waited_seconds)
        counted = self._waited if waited_seconds > WAITED_SECONDS else self._not_waited
        counted[model] += 1

    def first_token(self, model: str, seconds: float) -> None:
        """Count the first bytes of a streamed response, ``seconds`` after the request's arrival."""
        self._first_token[model].observe(seconds)

    def ended(self, request: Request, *, complete: bool) -> None:
        """Count whether a streamed answer was on time, at its end. Call it for no request that is tried again."""
        if request.streams:
            self.streams[request.model].ended(request, complete=complete)

    def switch_done(self, done: SwitchDone) -> None:
        """Count a switch that brought a model onto the GPU."""
        phases = (done.cooldown_seconds, done.drain_seconds, done.sleep_seconds, done.wake_seconds)
        self._switches[done.previous, done.model] += 1
        for phase, seconds in zip(PHASES, phases, strict=True):
            self._phases.setdefault((phase, done.model), Histogram()).observe(seconds)
        self._totals.setdefault(done.model, Histogram()).observe(done.total_seconds)
        self._was_active[done.model] = None

    def switch_failed(self, failed: SwitchFailed) -> None:
        """Count a switch that failed, and a canary mismatch if that is why."""
        self._failures[failed.model] += 1
        if failed.mismatched_eviction is not None:
            self._mismatches[failed.model, str(failed.mismatched_eviction)] += 1

    def stepped_down(self, step: SteppedDown) -> None:
        """Count a model that keeps less while it is off the GPU, and why."""
        self._steps[step.model, str(step.eviction), step.reason.value] += 1

    def memory_pressure_began(self) -> None:
        """Count a time at which other programs took GPU memory that should have stayed free."""
        self._memory_pressures += 1

    def collect(self) -> "Iterator[Metric]":
        """All metrics, as Prometheus families."""
        yield from self._collect_switches()
        yield from self._collect_requests()
        yield from self._collect_canaries()
        yield self._collect_streams()
        yield self._collect_forecasts()
        yield from self._collect_overload()
        yield from self._collect_sleepers()
        yield families.CounterMetricFamily(
            "llmux_gpu_memory_pressures",
            "Times at which other programs began to hold memory of gpu_memory_reserve.",
            value=self._memory_pressures,
        )
        stalls = families.CounterMetricFamily(
            "llmux_engine_stalls", "Engines that hung and were killed for that.", labels=["model"]
        )
        for model, stalled in self._stalls.items():
            stalls.add_metric([model], stalled.count)
        yield stalls
        active = families.GaugeMetricFamily(
            "llmux_active_model_info", "1 for the active model, 0 for models that were active before.", labels=["model"]
        )
        serving = self._scheduler.active_model()
        for model in self._was_active:
            active.add_metric([model], 1 if model == serving else 0)
        yield active

    def _collect_switches(self) -> "Iterator[Metric]":
        switches = families.CounterMetricFamily(
            "llmux_switches", "Switches that brought a model onto the GPU.", labels=["from", "to"]
        )
        for (previous, model), number in self._switches.items():
            switches.add_metric([previous, model], number)
        yield switches
        failures = families.CounterMetricFamily(
            "llmux_switch_failures", "Switches that failed to bring their model onto the GPU.", labels=["to"]
        )
        for model, number in self._failures.items():
            failures.add_metric([model], number)
        yield failures
        totals = families.HistogramMetricFamily(
            "llmux_switch_total_seconds",
            "Duration of switches, from the decision until the model serves.",
            labels=["to"],
        )
        for model, histogram in self._totals.items():
            totals.add_metric([model], histogram.buckets(), histogram.total)
        yield totals
        phases = families.HistogramMetricFamily(
            "llmux_switch_phase_seconds",
            "Duration of the phases of switches: cooldown, drain, sleep, wake.",
            labels=["phase", "to"],
        )
        for (phase, model), histogram in self._phases.items():
            phases.add_metric([phase, model], histogram.buckets(), histogram.total)
        yield phases

    def _collect_requests(self) -> "Iterator[Metric]":
        waits = families.HistogramMetricFamily(
            "llmux_request_queue_wait_seconds", "Time that admitted requests waited for their model.", labels=["model"]
        )
        requests = families.CounterMetricFamily(
            "llmux_requests",
            "Admitted requests, by whether they waited longer than a millisecond.",
            labels=["model", "waited"],
        )
        first = families.HistogramMetricFamily(
            "llmux_time_to_first_token_seconds",
            "Time from a streaming request's arrival to the first bytes of its response.",
            labels=["model"],
        )
        in_flight = families.GaugeMetricFamily("llmux_in_flight", "Requests at the model's engine.", labels=["model"])
        depth = families.GaugeMetricFamily("llmux_queue_depth", "Requests that wait for the model.", labels=["model"])
        frozen = families.GaugeMetricFamily(
            "llmux_frozen", "Requests that are suspended with their engine.", labels=["model"]
        )
        for record in self._scheduler.models:
            model = record.name
            frozen.add_metric([model], len(record.frozen))
            histogram = self._queue_wait[model]
            at_once = self._admitted_at_once(model)
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

    def _collect_streams(self) -> "Metric":
        streams = families.CounterMetricFamily(
            "llmux_streams",
            "Streamed answers that have ended, by whether they were on time throughout: first token within the target, "
            "pauses included.",
            labels=["model", "class", "on_time"],
        )
        for model, counted in self.streams.items():
            for priority in Priority:
                streams.add_metric([model, priority.value, "true"], counted.on_time[priority])
                streams.add_metric([model, priority.value, "false"], counted.late[priority])
        return streams

    def _collect_forecasts(self) -> "Metric":
        forecasts = families.CounterMetricFamily(
            "llmux_wait_forecasts",
            "Requests that waited and were admitted, by whether the wait that was forecast when they came was right "
            "(within a fifth, or a second), too short or too long.",
            labels=["model", "forecast"],
        )
        for (model, truth), number in self._forecasts.items():
            forecasts.add_metric([model, truth.value], number)
        return forecasts

    def _collect_overload(self) -> "Iterator[Metric]":
        overload = self._overload
        yield families.GaugeMetricFamily(
            "llmux_overload_seconds",
            "For how long requests have been coming that will probably time out, or are refused; 0: they are not.",
            value=0.0 if overload is None else overload.seconds or 0.0,
        )
        yield families.CounterMetricFamily(
            "llmux_overload_episodes",
            "Times at which more was asked of the GPUs than they can do, for a minute and more.",
            value=0 if overload is None else overload.episodes,
        )

        offered_load = None if overload is None else overload.offered_load
        if offered_load is not None:
            yield families.GaugeMetricFamily(
                "llmux_offered_load",
                "What is asked of the busiest GPU, as a multiple of what it can do; above 1 queues grow.",
                value=offered_load,
            )

    def _collect_sleepers(self) -> "Iterator[Metric]":
        held = families.GaugeMetricFamily(
            "llmux_host_memory_bytes", "Host memory that the model holds while it is off the GPU.", labels=["model"]
        )
        for record in self._scheduler.models:
            held.add_metric([record.name], record.sleep.held_mib << 20)
        yield held
        steps = families.CounterMetricFamily(
            "llmux_steps_down",
            "Times that a model off the GPU went on to an eviction that keeps less, and why.",
            labels=["model", "eviction", "reason"],
        )
        for labels, number in self._steps.items():
            steps.add_metric(labels, number)
        yield steps

    def _collect_canaries(self) -> "Iterator[Metric]":
        checks = families.CounterMetricFamily(
            "llmux_canary_checks", "Wakes after which the model's output was checked.", labels=["model"]
        )
        seconds = families.CounterMetricFamily(
            "llmux_canary_seconds", "Time spent on checking output after wakes.", labels=["model"]
        )
        mismatches = families.CounterMetricFamily(
            "llmux_canary_mismatches",
            "Wakes after which the model's output differed from its output after the start.",
            labels=["model", "eviction"],
        )
        for model, canary in self._canaries.items():
            checks.add_metric([model], canary.checks)
            seconds.add_metric([model], canary.seconds)
        for (model, eviction), number in self._mismatches.items():
            mismatches.add_metric([model, eviction], number)
        yield checks
        yield seconds
        yield mismatches
