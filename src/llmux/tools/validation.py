"""Trying out whether a model's engine survives each way of leaving the GPU, and really gives its memory back."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from llmux.core.eviction import STOP, Eviction, Process
from llmux.engines.steps import UnsupportedEviction, steps_of
from llmux.errors import LlmuxError, OutputMismatch, ProcessStuck
from llmux.hosts.local import find_descendants, find_living
from llmux.tools.standalone import Memory, StandaloneEngine, Tell

PAUSE_SECONDS = 1.0
GPU_SHARE_FREED = 0.5
"""Of what the engine held. The rest is at most what CUDA itself keeps."""
HOST_MIB_FREED = 16
"""More than what a process's memory varies by itself: without a GPU only the KV cache or the weights tell."""


@dataclass(slots=True)
class Trial:
    """One way of leaving the GPU, tried once; what is None was not reached or cannot be read."""

    eviction: Eviction
    sleep_seconds: float | None = None
    wake_seconds: float | None = None
    before: Memory | None = None
    asleep: Memory | None = None
    awake: Memory | None = None
    is_same_answer: bool | None = None
    reasons: list[str] = field(default_factory=list)
    """Why it failed."""

    @property
    def passed(self) -> bool:
        """Whether all was as it should be."""
        return self.is_same_answer is True and not self.reasons


@dataclass(frozen=True, slots=True)
class Validation:
    """All trials of one model."""

    model: str
    baseline: str
    is_judged_by_gpu: bool
    """Whether freed memory is the GPUs', or, where those cannot be read, the host's."""
    trials: tuple[Trial, ...]

    @property
    def passed(self) -> bool:
        """Whether every trial passed."""
        return all(trial.passed for trial in self.trials)


async def validate(
    engine: StandaloneEngine, evictions: Sequence[Eviction], tell: Tell, *, pause_seconds: float = PAUSE_SECONDS
) -> Validation:
    """Start the engine and try each eviction in turn; one that fails does not keep the next from being tried.

    After a failure the next trial begins with a fresh engine. Raises LlmuxError if the engine does not start at all.
    """
    empty = await engine.measure()
    tell("starting the engine")
    await engine.instance.wake()
    baseline = await engine.ask()
    judge = _Judge(engine, baseline, empty.gpu_mib, tell, pause_seconds)
    trials = [await judge.try_out(eviction) for eviction in evictions]
    return Validation(engine.instance.spec.model, baseline, empty.gpu_mib is not None, tuple(trials))


@dataclass(frozen=True, slots=True)
class _Judge:
    engine: StandaloneEngine
    baseline: str
    empty_gpu_mib: int | None
    tell: Tell
    pause_seconds: float

    async def try_out(self, eviction: Eviction) -> Trial:
        trial = Trial(eviction)
        try:
            steps_of(eviction)
        except UnsupportedEviction as refusal:
            trial.reasons.append(str(refusal))
            return trial
        try:
            await self._begin(eviction)
            await self._leave(trial)
            await self._come_back(trial)
        except OutputMismatch as difference:
            trial.is_same_answer = False
            trial.reasons.append(str(difference))
        except LlmuxError as error:
            trial.reasons.append(str(error))
        if not trial.passed:
            await self._give_up()
        return trial

    async def _give_up(self) -> None:
        """Whatever state the engine is in, or its image: the next one is to be fresh."""
        with suppress(ProcessStuck):
            await self.engine.instance.evict(STOP)
        await self.engine.instance.end()

    async def _begin(self, eviction: Eviction) -> None:
        instance = self.engine.instance
        if instance.lost is not None:
            self.tell(f"{eviction}: starting a fresh engine")
            await instance.end()
            await instance.wake()

    async def _leave(self, trial: Trial) -> None:
        self.tell(f"{trial.eviction}: leaving the GPU")
        instance = self.engine.instance
        family = find_descendants(instance.shim_pid or 0)
        trial.before = await self.engine.measure()
        began_at = monotonic()
        residency = await instance.evict(trial.eviction)
        trial.sleep_seconds = monotonic() - began_at
        await asyncio.sleep(self.pause_seconds)
        trial.asleep = await self.engine.measure()
        if reason := self.engine.other_than(trial.eviction, residency):
            trial.reasons.append(reason)
        if reason := self._not_freed(trial.before, trial.asleep):
            trial.reasons.append(reason)
        if trial.eviction.process in (Process.STOP, Process.CHECKPOINT) and (left := find_living(family)):
            trial.reasons.append(f"processes of the engine are still there: {', '.join(map(str, left))}")

    async def _come_back(self, trial: Trial) -> None:
        self.tell(f"{trial.eviction}: coming back")
        instance = self.engine.instance
        began_at, asked_before_seconds = monotonic(), instance.canary.seconds
        await instance.wake()
        trial.wake_seconds = monotonic() - began_at - (instance.canary.seconds - asked_before_seconds)
        trial.awake = await self.engine.measure()
        answer = await self.engine.ask()
        trial.is_same_answer = answer == self.baseline
        if not trial.is_same_answer:
            trial.reasons.append(f"the answer is {answer!r}, before it was {self.baseline!r}")

    def _not_freed(self, before: Memory, asleep: Memory) -> str | None:
        if before.gpu_mib is not None and asleep.gpu_mib is not None and self.empty_gpu_mib is not None:
            held_mib = max(0, before.gpu_mib - self.empty_gpu_mib)
            freed_mib = before.gpu_mib - asleep.gpu_mib
            least_mib = max(1, int(held_mib * GPU_SHARE_FREED))
            what = f"GPU memory of {held_mib} MiB"
        else:
            freed_mib, least_mib = before.host_mib - asleep.host_mib, HOST_MIB_FREED
            what = f"host memory of {before.host_mib} MiB"
        if freed_mib >= least_mib:
            return None
        return (
            f"the memory was not freed: of its {what} the engine gave back {freed_mib}, and {least_mib} were expected"
        )
