"""The program that calls the driver's checkpoint API for a server: ``python -m llmux.gpus.driver_helper``.

It initialises CUDA once, which takes seconds, and keeps libcuda out of llmux, where a driver that hangs or crashes
would take the server with it. Standard library and cuda-bindings only.

One JSON object a line. It begins with ``{"ready": VERSION}`` or ``{"unusable": REASON}``. A request is ``{"id": N,
"do": "state" or an action, "pid": P, "timeout_ms": T}``, ``timeout_ms`` for a lock only; the answer, in any order, is
``{"id": N, "state": STATE or null}``, ``{"id": N}`` or ``{"id": N, "error": TEXT}``. Requests run side by side, each in
a thread of its own. The program ends with its input, whatever is under way.
"""

import json
import os
import select
import sys
import threading
from typing import Any

STATES = ("running", "locked", "checkpointed", "failed")
"""By their numbers in ``CUprocessState``. Later ones belong to checkpoints with storage of the caller's own."""
OLDEST_DRIVER = 12080
"""CUDA 12.8, of driver 570: the first with this API, and the first that suspends processes which use NVML."""
MOST_THREADS = 64

_output = threading.Lock()


class Unusable(Exception):
    """The API cannot be used here."""


def load() -> Any:
    """The module of the driver's functions, with CUDA initialised; raises Unusable."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise Unusable(f"the package cuda-bindings is not installed ({error})") from error
    if not hasattr(driver, "cuCheckpointProcessLock"):
        raise Unusable("this cuda-bindings has no checkpoint functions: install version 12.8 or later")
    try:
        _check(driver, *driver.cuInit(0))
        version = _check(driver, *driver.cuDriverGetVersion())
    except Exception as error:  # what the binding raises where there is no libcuda is its own
        raise Unusable(f"the driver cannot be used: {error}") from error
    if version < OLDEST_DRIVER:
        raise Unusable(f"the driver knows CUDA {version // 1000}.{version % 1000 // 10}: install driver 570 or later")
    return driver


class Failed(Exception):
    """The driver has refused a call."""


def _check(driver: Any, result: Any, *values: Any) -> Any:
    if int(result) != int(driver.CUresult.CUDA_SUCCESS):
        raise Failed(getattr(result, "name", str(result)))
    return values[0] if values else None


def answer(driver: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked for."""
    pid = request["pid"]
    try:
        match request["do"]:
            case "state":
                return {"state": _state(driver, pid)}
            case "lock":
                arguments = driver.CUcheckpointLockArgs()
                arguments.timeoutMs = request["timeout_ms"]
                _check(driver, *driver.cuCheckpointProcessLock(pid, arguments))
            case "checkpoint":
                _check(driver, *driver.cuCheckpointProcessCheckpoint(pid, None))
            case "restore":
                _check(driver, *driver.cuCheckpointProcessRestore(pid, None))
            case "unlock":
                _check(driver, *driver.cuCheckpointProcessUnlock(pid, None))
            case unknown:
                raise Failed(f"unknown request {unknown!r}")
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}" if not isinstance(error, Failed) else str(error)}
    return {}


def _state(driver: Any, pid: int) -> str | None:
    result, state = driver.cuCheckpointProcessGetState(pid)
    # For a process without CUDA, and for one that has ended.
    if int(result) == int(driver.CUresult.CUDA_ERROR_INVALID_VALUE):
        return None
    _check(driver, result)
    number = int(state)
    return STATES[number] if number < len(STATES) else STATES[-1]


def _say(document: dict[str, Any], stream: int) -> None:
    with _output:
        os.write(stream, json.dumps(document).encode() + b"\n")


def _end_with_input() -> None:
    """End the program when nobody can ask any more, also while CUDA is being initialised or a thread hangs in it."""
    input_end = select.poll()
    input_end.register(0, 0)  # a hang-up is always told
    input_end.poll()
    os._exit(0)


def main() -> None:
    """Serve requests until the end of the input."""
    stream = os.dup(1)
    # What the driver or its binding prints must not be taken for an answer.
    os.dup2(2, 1)
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        driver = load()
    except Unusable as reason:
        _say({"unusable": str(reason)}, stream)
        return
    _say({"ready": str(_check(driver, *driver.cuDriverGetVersion()))}, stream)
    slots = threading.Semaphore(MOST_THREADS)

    def serve(request: dict[str, Any]) -> None:
        with slots:
            _say({"id": request["id"], **answer(driver, request)}, stream)

    for line in sys.stdin.buffer:
        threading.Thread(target=serve, args=(json.loads(line),), daemon=True).start()
    os._exit(0)


if __name__ == "__main__":
    main()
