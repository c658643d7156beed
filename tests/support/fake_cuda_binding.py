"""The functions of ``cuda.bindings.driver`` that llmux calls, by their names and signatures in cuda-bindings 13.5."""

import os
import time
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

from tests.support.fake_cuda import VARIABLE, FakeCuda, Refused

__all__ = [
    "CUcheckpointLockArgs",
    "CUresult",
    "cuCheckpointProcessCheckpoint",
    "cuCheckpointProcessGetState",
    "cuCheckpointProcessLock",
    "cuCheckpointProcessRestore",
    "cuCheckpointProcessUnlock",
    "cuDriverGetVersion",
    "cuInit",
]

STATES = ("running", "locked", "checkpointed", "failed")


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_ILLEGAL_STATE = 401


class CUcheckpointLockArgs(SimpleNamespace):
    timeoutMs: int = 0


def cuInit(flags: int) -> tuple[CUresult]:
    while os.environ.get("FAKE_CUDA_INIT") == "hang":
        time.sleep(3600)
    return (CUresult(int(os.environ.get("FAKE_CUDA_INIT", "0"))),)


def cuDriverGetVersion() -> tuple[CUresult, int]:
    return CUresult.CUDA_SUCCESS, int(os.environ.get("FAKE_CUDA_VERSION", "12080"))


def cuCheckpointProcessGetState(pid: int) -> tuple[CUresult, int]:
    state = _driver().state(pid)
    if state is None:
        return CUresult.CUDA_ERROR_INVALID_VALUE, 0
    return CUresult.CUDA_SUCCESS, STATES.index(state)


def cuCheckpointProcessLock(pid: int, args: CUcheckpointLockArgs | None) -> tuple[CUresult]:
    assert args is not None and args.timeoutMs > 0
    return _act("lock", pid)


def cuCheckpointProcessCheckpoint(pid: int, args: Any) -> tuple[CUresult]:
    return _act("checkpoint", pid)


def cuCheckpointProcessRestore(pid: int, args: Any) -> tuple[CUresult]:
    return _act("restore", pid)


def cuCheckpointProcessUnlock(pid: int, args: Any) -> tuple[CUresult]:
    return _act("unlock", pid)


def _act(action: str, pid: int) -> tuple[CUresult]:
    try:
        _driver().act(action, pid)
    except Refused:
        return (CUresult.CUDA_ERROR_ILLEGAL_STATE,)
    return (CUresult.CUDA_SUCCESS,)


def _driver() -> FakeCuda:
    return FakeCuda(os.environ[VARIABLE])
