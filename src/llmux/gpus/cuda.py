"""The port to CUDA's checkpoints: a process's GPU memory goes to host memory and comes back, while the process lives.

Facts: NVIDIA's documentation of ``cuCheckpointProcess*`` (CUDA driver API, "CUDA Checkpointing") and of the program
``cuda-checkpoint``. Locking blocks the process's CUDA calls; a checkpoint copies its GPU memory to host memory and
gives the GPU back; restoring takes the GPU again, and unlocking lets the process go on.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from llmux.errors import LlmuxError


class CudaState(StrEnum):
    """What a CUDA process is, in the driver's words. From ``failed`` nothing leads back."""

    RUNNING = "running"
    LOCKED = "locked"
    CHECKPOINTED = "checkpointed"
    FAILED = "failed"


class CudaAction(StrEnum):
    """What can be done to a CUDA process, in the driver's words."""

    LOCK = "lock"
    CHECKPOINT = "checkpoint"
    RESTORE = "restore"
    UNLOCK = "unlock"


@dataclass(frozen=True, slots=True)
class CudaLimits:
    """How long the driver may take."""

    lock_seconds: float = 10.0
    """For kernels that run to end. The driver itself gives up then, and the process goes on."""
    copy_seconds: float = 120.0
    """For every other action: the time to copy all of a process's GPU memory."""


class CudaUnusable(LlmuxError):
    """Nothing on this machine can suspend CUDA processes; the message says why, and what to install."""


class CudaCallFailed(LlmuxError):
    """The driver refused an action, or did not answer.

    ``is_settled``: whether the action is over, so that the process's state can be read. Otherwise it may still be under
    way, and the process must be ended.
    """

    def __init__(self, reason: str, *, is_settled: bool = True) -> None:
        self.is_settled = is_settled
        super().__init__(reason)


class CudaCheckpoints(Protocol):
    """Acts on one process at a time; calls for different processes may be made together.

    When cancelled, a call is abandoned: what becomes of the process is not known.
    """

    async def state(self, pid: int) -> CudaState | None:
        """The process's state; None if it does not use CUDA or has ended. Raises CudaCallFailed, CudaUnusable."""

    async def act(self, action: CudaAction, pid: int, limit_seconds: float) -> None:
        """Do it, and return when it is done; raises CudaCallFailed, CudaUnusable.

        For a lock, the driver itself gives up after the limit, and the process runs on. Any other action that takes
        longer raises with ``is_settled`` False.
        """
