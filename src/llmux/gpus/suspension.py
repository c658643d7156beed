"""Takes the processes of one engine off their GPUs together, and brings them back.

All are locked before the first one is checkpointed, and all are restored before the first one is unlocked: ranks of one
engine talk to each other, and one that computes while another cannot would wait for it, or fail. What is done next is
always decided from the states that the driver tells, so that a half-done suspend can be led back from wherever it is.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from enum import Enum, auto
from typing import Any, TypeVar, assert_never

from llmux.cancellation import wait_uncancelled
from llmux.errors import LlmuxError
from llmux.gpus.cuda import CudaAction, CudaCallFailed, CudaCheckpoints, CudaLimits, CudaState, CudaUnusable

Result = TypeVar("Result")

MOST_ROUNDS = 2
"""Lock and checkpoint, or restore and unlock: more is never needed."""


class Goal(Enum):
    """Where all processes of an engine are to be."""

    SUSPENDED = auto()
    RUNNING = auto()


class SuspendFailed(LlmuxError):
    """The processes could not be suspended. ``engine_runs``: all of them run again as before; else end the engine."""

    def __init__(self, reason: str, *, engine_runs: bool) -> None:
        self.engine_runs = engine_runs
        super().__init__(reason)


class ResumeFailed(LlmuxError):
    """The processes could not be resumed, and must be ended."""


def next_action(goal: Goal, states: Mapping[int, CudaState]) -> tuple[CudaAction, tuple[int, ...]] | None:
    """What brings the processes nearer to the goal, and which of them it is for; None if they are there.

    Raises CudaCallFailed if nothing leads there.
    """
    if failed := [pid for pid, state in states.items() if state is CudaState.FAILED]:
        raise CudaCallFailed(f"the driver has given up the process {failed[0]}")
    match goal:
        case Goal.SUSPENDED:
            order = ((CudaState.RUNNING, CudaAction.LOCK), (CudaState.LOCKED, CudaAction.CHECKPOINT))
        case Goal.RUNNING:
            order = ((CudaState.CHECKPOINTED, CudaAction.RESTORE), (CudaState.LOCKED, CudaAction.UNLOCK))
        case _:
            assert_never(goal)
    for state, action in order:
        if pids := tuple(pid for pid, found in states.items() if found is state):
            return action, pids
    return None


async def suspend(cuda: CudaCheckpoints, pids: Sequence[int], limits: CudaLimits) -> None:
    """Move the GPU memory of the processes to host memory; raises SuspendFailed.

    Cancelled, it comes to its end first, in one way or the other, which the time limits bound.
    """
    await _to_its_end(_suspend(cuda, pids, limits))


async def resume(cuda: CudaCheckpoints, pids: Sequence[int], limits: CudaLimits) -> None:
    """Undo ``suspend``, also for processes of which some run already; raises ResumeFailed.

    Cancelled, it comes to its end first.
    """
    await _to_its_end(_resume(cuda, pids, limits))


async def _suspend(cuda: CudaCheckpoints, pids: Sequence[int], limits: CudaLimits) -> None:
    try:
        await _bring(cuda, Goal.SUSPENDED, pids, limits)
    except (CudaCallFailed, CudaUnusable) as failure:
        reason = str(failure)
        if isinstance(failure, CudaCallFailed) and not failure.is_settled:
            raise SuspendFailed(reason, engine_runs=False) from failure
        try:
            await _bring(cuda, Goal.RUNNING, pids, limits)
        except (CudaCallFailed, CudaUnusable) as second:
            raise SuspendFailed(f"{reason}; then, on the way back, {second}", engine_runs=False) from failure
        raise SuspendFailed(reason, engine_runs=True) from failure


async def _resume(cuda: CudaCheckpoints, pids: Sequence[int], limits: CudaLimits) -> None:
    try:
        await _bring(cuda, Goal.RUNNING, pids, limits)
    except (CudaCallFailed, CudaUnusable) as failure:
        raise ResumeFailed(str(failure)) from failure


async def _bring(cuda: CudaCheckpoints, goal: Goal, pids: Sequence[int], limits: CudaLimits) -> None:
    for _ in range(MOST_ROUNDS):
        states = await _read(cuda, pids)
        wanted = next_action(goal, states)
        if wanted is None:
            return
        action, those = wanted
        limit_seconds = limits.lock_seconds if action is CudaAction.LOCK else limits.copy_seconds
        await _all_of([cuda.act(action, pid, limit_seconds) for pid in those])
    states = await _read(cuda, pids)
    if next_action(goal, states) is not None:
        raise CudaCallFailed(f"the driver says that it is done, and the processes are {_listed(states)}")


async def _read(cuda: CudaCheckpoints, pids: Sequence[int]) -> dict[int, CudaState]:
    states: dict[int, CudaState] = {}
    for pid, state in zip(pids, await _all_of([cuda.state(pid) for pid in pids]), strict=True):
        if state is None:
            raise CudaCallFailed(f"the process {pid} has ended, or uses CUDA no more")
        states[pid] = state
    return states


async def _all_of(calls: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Make the calls together, and wait for all of them: a call that fails must not leave others under way.

    Raises the failure that says most: one that is not settled, if there is one.
    """
    results = await asyncio.gather(*calls, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    unsettled = [one for one in failures if isinstance(one, CudaCallFailed) and not one.is_settled]
    for failure in (*unsettled, *failures):
        raise failure
    return [result for result in results if not isinstance(result, BaseException)]


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    failure: list[LlmuxError] = []

    async def run() -> None:
        # A failure that left the group would cancel the wait for it.
        try:
            await work
        except LlmuxError as error:
            failure.append(error)

    async with asyncio.TaskGroup() as group:
        await wait_uncancelled(group.create_task(run()))
    for error in failure:
        raise error


def _listed(states: Mapping[int, CudaState]) -> str:
    return ", ".join(f"{pid} {state}" for pid, state in states.items())
