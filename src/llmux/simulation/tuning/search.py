"""Tries changes on the first half of a trace, and judges what it has chosen on the second half."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmux.config import checks
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.core.identifiers import Seconds
from llmux.errors import LlmuxError
from llmux.simulation.occupancy import GpuUse
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.tuning.changes import (
    Change,
    Changes,
    GpuMemory,
    Memory,
    alternatives,
    applied,
    equal_parts,
    parts,
    with_changes,
)
from llmux.simulation.virtual.leases import leases_between
from llmux.simulation.virtual.scenario import Scenario, simulate, summarise, use_of

GAIN_MIN = 0.01
"""A change is kept if it saves at least this share of the waiting: less is chance."""
ROUNDS_MAX = 3
"""How often every setting is looked at again, since one change may make another one pay."""
REQUESTS_MIN = 40
"""Half of them to choose by and half to judge by; fewer say nothing."""
LOST_SECONDS: Seconds = 300.0
"""A lost request counts as a wait of at least this long, so that losing the difficult ones never pays."""


class TuningFailed(LlmuxError):
    """The trace cannot be used for tuning."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a half of the trace was served like."""

    waited_by_model: Mapping[str, Seconds]
    """The times to first token of a model's requests together, with lost ones as ``LOST_SECONDS`` at least."""
    ttft_mean: Seconds | None
    ttft_p99: Seconds | None
    lost: int
    use: GpuUse

    @property
    def waited(self) -> Seconds:
        """By which changes are chosen: the times to first token of all requests together."""
        return math.fsum(self.waited_by_model.values())

    @property
    def switches(self) -> int:
        """How many there were."""
        return self.use.causes.total


@dataclass(frozen=True, slots=True)
class Variant:
    """Some changes, and how both halves were served with them."""

    changes: Changes
    chosen_on: Measured
    judged_on: Measured


@dataclass(frozen=True, slots=True)
class Tuning:
    """The outcome: the configuration as it is, with each chosen change alone, and with all of them."""

    before: Variant
    alone: Sequence[Variant]
    together: Variant
    runs: int
    is_complete: bool
    """Whether everything was tried: False if the number of runs did not suffice."""

    @property
    def holds(self) -> bool:
        """Whether the changes also save waiting on the half by which they were not chosen, and lose no request."""
        before, after = self.before.judged_on, self.together.judged_on
        saves = after.waited <= before.waited * (1 - GAIN_MIN) and after.lost <= before.lost
        return bool(self.together.changes) and saves


def tune(
    settings: Settings,
    build: Callable[[Settings], Scenario],
    requests: Sequence[TrafficRequest],
    policy: PolicyType,
    least_mib: Mapping[str, int],
    runs_max: int,
    progress: Callable[[float], None],
) -> Tuning:
    """Search and judge. The same trace and settings always give the same outcome.

    ``build`` makes the scenario of some settings. ``least_mib`` is the least GPU memory of models, as far as it is
    known. The search makes at most ``runs_max`` runs, of which ``progress`` is told; the judgement adds some.
    Raises TuningFailed.
    """
    if len(requests) < REQUESTS_MIN:
        raise TuningFailed(f"the trace has {len(requests)} requests; tuning needs {REQUESTS_MIN}: take a longer part")
    middle = len(requests) // 2
    memory = Memory.of(build(settings).scheduler(), least_mib)
    turn = requests[middle].at_seconds
    chosen_on = _Half(settings, build, requests[:middle], policy, memory, until=turn)
    judged_on = _Half(settings, build, requests[middle:], policy, memory, until=math.inf)
    search = _Search(chosen_on, runs_max, progress)
    changes = search.run()

    def variant(some: Changes) -> Variant:
        return Variant(some, chosen_on.measure(some), judged_on.measure(some))

    return Tuning(
        before=variant(()),
        alone=[variant(some) for some in parts(changes)],
        together=variant(changes),
        runs=search.runs,
        is_complete=search.is_complete,
    )


@dataclass
class _Half:
    """One half of the trace, and what has been measured on it."""

    settings: Settings
    build: Callable[[Settings], Scenario]
    requests: Sequence[TrafficRequest]
    policy: PolicyType
    memory: Memory
    until: Seconds
    """When it ends, on the clock of the whole trace."""
    measured: dict[frozenset[Change], Measured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._since = self.requests[0].at_seconds
        self._played = [replace(one, at_seconds=one.at_seconds - self._since) for one in self.requests]

    def measure(self, changes: Changes) -> Measured:
        """Run it with these changes, unless that has been done."""
        key = frozenset(changes)
        if key not in self.measured:
            self.measured[key] = self._run(changes)
        return self.measured[key]

    def _run(self, changes: Changes) -> Measured:
        scenario = self.build(applied(self.settings, changes, self.memory))
        # What an engine was seen to hold does not say what it will with another size.
        resized = {change.model for change in changes if isinstance(change, GpuMemory)}
        seen = {name: replace(one, awake_mib=0) if name in resized else one for name, one in scenario.seen.items()}
        leases = leases_between(scenario.leases, self._since, self.until)
        result = simulate(replace(scenario, seen=seen, leases=leases), self._played, self.policy)
        total = summarise("", self._played, result).total
        waited = dict.fromkeys(self.settings.models, 0.0)
        times = zip(self._played, result.first_token_at, result.ended_at, result.served, strict=True)
        for request, first_token_at, ended_at, served in times:
            until = first_token_at if served else max(ended_at, request.at_seconds + LOST_SECONDS)
            waited[request.model] += until - request.at_seconds
        return Measured(waited, total.ttft.mean, total.ttft.p99, total.unserved, use_of(result))


class _Search:
    """One setting after the other: the alternative that saves the most waiting is kept, until none saves any."""

    def __init__(self, half: _Half, runs_max: int, progress: Callable[[float], None]) -> None:
        self.runs = 0
        self.is_complete = True
        self._half = half
        self._runs_max = runs_max
        self._progress = progress
        self._best: Changes = ()
        self._waited = self._measure(()).waited

    def run(self) -> Changes:
        """The chosen changes, in the order in which they were found."""
        half = self._half
        for _ in range(ROUNDS_MAX):
            before = self._best
            self._try(equal_parts(half.memory))
            for name in self._by_waiting():
                present = half.memory.with_sizes(self._best)
                for changes in alternatives(half.settings, name, half.memory, present):
                    self._try(changes)
            if self._best == before:
                break
        self._leave_out_what_saves_nothing()
        return self._best

    def _by_waiting(self) -> list[str]:
        """The models of the trace, those first whose requests wait the longest together: runs go where it pays."""
        waited = self._half.measure(self._best).waited_by_model
        return sorted((name for name, seconds in waited.items() if seconds), key=lambda name: -waited[name])

    def _try(self, alternatives_: Iterable[Changes]) -> None:
        """Keep the best of some alternatives to what is best so far, if it saves enough."""
        least, chosen = self._waited * (1 - GAIN_MIN), None
        for more in alternatives_:
            changes = with_changes(self._best, more)
            if self.runs >= self._runs_max:
                self.is_complete = False
                break
            if self._is_possible(changes) and (waited := self._measure(changes).waited) < least:
                least, chosen = waited, changes
        if chosen is not None:
            self._best, self._waited = chosen, least

    def _is_possible(self, changes: Changes) -> bool:
        """Whether ``llmux check`` would take the configuration."""
        half = self._half
        return not any(checks.problems(applied(half.settings, changes, half.memory)))

    def _leave_out_what_saves_nothing(self) -> None:
        """Take back changes that later ones have made useless: one run for each at most."""
        for change in self._best:
            fewer = tuple(one for one in self._best if one != change)
            if self._measure(fewer).waited * (1 - GAIN_MIN) <= self._waited:
                self._best = fewer

    def _measure(self, changes: Changes) -> Measured:
        count = len(self._half.measured)
        measured = self._half.measure(changes)
        self.runs += len(self._half.measured) - count
        self._progress(self.runs)
        return measured
