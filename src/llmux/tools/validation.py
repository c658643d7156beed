"""Tries each eviction of a model's engine: does it free its memory, and answer the same afterwards?"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic

from llmux.core.eviction import STOP, Eviction, Process
from llmux.errors import LlmuxError
from llmux.hosts.local import find_descendants, find_living
from llmux.tools.standalone import Memory, OnProgress, StandaloneEngine, WakeFailed

PAUSE_SECONDS = 1.0
"""From the end of an eviction to the measurement: the driver frees memory a moment later."""
GPU_SHARE_FREED = 0.5
"""Of what the engine held: a sleeping engine keeps its CUDA context, which is far less than the rest."""
GPU_SHARE_FREED_OF_A_PART = 0.01
"""The same for an engine that keeps its weights there."""
NEAR_SHARE = 0.1
HOST_MIB_FREED = 16
"""More than an idle process's memory varies by, and less than any model's weights or KV cache."""


@dataclass(slots=True)
class Trial:
    """One eviction, tried once; what is None was not reached or cannot be read."""

    eviction: Eviction
    sleep_seconds: float | None = None
    wake_seconds: float | None = None
    before: Memory | None = None
    asleep: Memory | None = None
    awake: Memory | None = None
    is_same_answer: bool | None = None
    reasons: list[str] = field(default_factory=list)
    """Why it failed; empty if it passed."""

    def freed_mib(self, *, of_gpu: bool) -> int | None:
        """How much memory the engine gave back; None if that was not reached or cannot be read."""
        if self.before is None or self.asleep is None:
            return None
        before, asleep = (one.gpu_mib if of_gpu else one.host_mib for one in (self.before, self.asleep))
        return None if before is None or asleep is None else before - asleep

    @property
    def switch_seconds(self) -> float:
        """There and back; infinity if either was not reached."""
        if self.sleep_seconds is None or self.wake_seconds is None:
            return math.inf
        return self.sleep_seconds + self.wake_seconds

    @property
    def passed(self) -> bool:
        """Whether the answer was the same and nothing else was wrong."""
        return self.is_same_answer is True and not self.reasons


@dataclass(frozen=True, slots=True)
class Validation:
    """The trials of one model."""

    model: str
    engine: str
    """The kind of its engine."""
    version: str | None
    """The engine's version, if it tells."""
    model_path: str
    baseline: str
    is_judged_by_gpu: bool
    """Whether freed memory was measured on the GPUs; if those cannot be read, it is the host's."""
    trials: tuple[Trial, ...]

    @property
    def passed(self) -> bool:
        """Whether every trial passed."""
        return all(trial.passed for trial in self.trials)


@dataclass(frozen=True, slots=True)
class Pick:
    """The best of the evictions that passed."""

    trial: Trial
    others: tuple[Trial, ...]
    """Those that passed, too, the quickest first."""


def pick_best(result: Validation) -> Pick | None:
    """The eviction off the GPU that is quickest there and back; None if none passed.

    Of those that take at most a tenth longer than the quickest, it is the one that leaves least in host memory: the
    figures of one trial are no more exact than that.
    """
    faithful = (trial for trial in result.trials if trial.passed and trial.eviction.leaves_the_gpu)
    passed = sorted(faithful, key=lambda trial: trial.switch_seconds)
    if not passed:
        return None
    near = [trial for trial in passed if trial.switch_seconds <= passed[0].switch_seconds * (1 + NEAR_SHARE)]
    best = min(near, key=lambda trial: (trial.asleep.host_mib if trial.asleep is not None else 0, trial.switch_seconds))
    return Pick(best, tuple(trial for trial in passed if trial is not best))


async def validate(
    engine: StandaloneEngine,
    evictions: Sequence[Eviction],
    on_progress: OnProgress,
    *,
    pause_seconds: float = PAUSE_SECONDS,
) -> Validation:
    """Start the engine and try each eviction in turn; after a failed trial, the next one begins with a fresh engine.

    Raises LlmuxError if the engine cannot be started or does not answer.
    """
    empty = await engine.measure()
    on_progress("starting the engine")
    WakeFailed.raise_for(await engine.instance.wake())
    baseline = await engine.ask()
    examiner = _Examiner(engine, baseline, empty.gpu_mib, on_progress, pause_seconds)
    trials = [await examiner.try_out(eviction) for eviction in evictions]
    spec = engine.instance.spec
    return Validation(
        model=spec.model,
        engine=spec.engine.kind,
        version=engine.instance.abilities.version,
        model_path=spec.engine.options.model_path,
        baseline=baseline,
        is_judged_by_gpu=empty.gpu_mib is not None,
        trials=tuple(trials),
    )


@dataclass(frozen=True, slots=True)
class _Examiner:
    engine: StandaloneEngine
    baseline: str
    empty_gpu_mib: int | None
    on_progress: OnProgress
    pause_seconds: float

    async def try_out(self, eviction: Eviction) -> Trial:
        trial = Trial(eviction)
        if reason := self.engine.instance.spec.engine.why_not(eviction):
            trial.reasons.append(reason)
            return trial
        try:
            await self._ensure_running(eviction)
            if await self._evict(trial):
                await self._wake(trial)
        except LlmuxError as error:
            trial.reasons.append(str(error))
        if not trial.passed:
            # Whatever state the engine or its image is in, the next trial gets a fresh one.
            await self.engine.instance.evict(STOP)
            await self.engine.instance.end()
        return trial

    async def _ensure_running(self, eviction: Eviction) -> None:
        instance = self.engine.instance
        if not instance.has_engine:
            self.on_progress(f"{eviction}: starting a fresh engine")
            await instance.end()
            WakeFailed.raise_for(await instance.wake())

    async def _evict(self, trial: Trial) -> bool:
        """Evict and measure; False if the engine could not be brought off the GPU."""
        self.on_progress(f"{trial.eviction}: leaving the GPU")
        instance = self.engine.instance
        family = find_descendants(instance.shim_pid or 0)
        trial.before = await self.engine.measure()
        began_at = monotonic()
        outcome = await instance.evict(trial.eviction)
        if outcome.error is not None:
            trial.reasons.append(str(outcome.error))
            return False
        trial.sleep_seconds = monotonic() - began_at
        await asyncio.sleep(self.pause_seconds)
        trial.asleep = await self.engine.measure()
        if reason := outcome.deviation_from(trial.eviction):
            trial.reasons.append(reason)
        if reason := self._not_freed(trial.eviction, trial.before, trial.asleep):
            trial.reasons.append(reason)
        if trial.eviction.process in (Process.STOP, Process.CHECKPOINT) and (left := find_living(family)):
            trial.reasons.append(f"processes of the engine are still there: {', '.join(map(str, left))}")
        return True

    async def _wake(self, trial: Trial) -> None:
        self.on_progress(f"{trial.eviction}: coming back")
        instance = self.engine.instance
        began_at = monotonic()
        outcome = await instance.wake()
        if outcome.error is not None:
            if outcome.is_mismatch:
                trial.is_same_answer = False
            trial.reasons.append(str(outcome.error))
            return
        trial.wake_seconds = monotonic() - began_at - outcome.canary_seconds
        trial.awake = await self.engine.measure()
        answer = await self.engine.ask()
        trial.is_same_answer = answer == self.baseline
        if not trial.is_same_answer:
            trial.reasons.append(f"the answer is {answer!r}, before it was {self.baseline!r}")

    def _not_freed(self, eviction: Eviction, before: Memory, asleep: Memory) -> str | None:
        if before.gpu_mib is not None and asleep.gpu_mib is not None and self.empty_gpu_mib is not None:
            held_mib = max(0, before.gpu_mib - self.empty_gpu_mib)
            freed_mib = before.gpu_mib - asleep.gpu_mib
            share = GPU_SHARE_FREED if eviction.leaves_the_gpu else GPU_SHARE_FREED_OF_A_PART
            least_mib = max(1, int(held_mib * share))
            what = f"GPU memory of {held_mib} MiB"
        else:
            freed_mib, least_mib = before.host_mib - asleep.host_mib, HOST_MIB_FREED
            what = f"host memory of {before.host_mib} MiB"
        if freed_mib >= least_mib:
            return None
        return (
            f"the memory was not freed: of its {what} the engine gave back {freed_mib}, and {least_mib} were expected"
        )
