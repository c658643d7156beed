"""CUDA's checkpoints through NVIDIA's program ``cuda-checkpoint``, of driver 555 and later."""

import asyncio
import os
import shutil
import subprocess

from llmux.cancellation import wait_uncancelled
from llmux.gpus.cuda import CudaAction, CudaCallFailed, CudaState, CudaUnusable

STATE_SECONDS = 30.0
"""Each run of the program initialises CUDA first, which was seen to take 2.7 s."""
MARGIN_SECONDS = 5.0
"""For the program's own start and end, beyond the time that the driver has for a lock."""
NOT_CUDA = "Could not find restore thread"
"""What the program says of a process that does not use CUDA."""
OUTPUT_CHARACTERS = 300


class CudaProgram:
    """Runs the program once for each call; through ``sudo -n`` where llmux is not root, as the driver asks for that."""

    def __init__(self, program: str, *, margin_seconds: float = MARGIN_SECONDS) -> None:
        self._program = program
        self._margin_seconds = margin_seconds

    def __str__(self) -> str:
        return f"the program {self._program}"

    async def check(self) -> None:
        """Whether the program is there; raises CudaUnusable."""
        if await asyncio.to_thread(shutil.which, self._program) is None:
            raise CudaUnusable(f"the program {self._program!r} was not found")

    async def state(self, pid: int) -> CudaState | None:
        code, output = await self._run(STATE_SECONDS, "--get-state", "--pid", str(pid))
        if code != 0:
            if NOT_CUDA in output or not _lives(pid):
                return None
            raise CudaCallFailed(f"{self._program} --get-state: {_shown(output, code)}")
        word = output.strip().rpartition(" ")[2].lower()
        try:
            return CudaState(word)
        except ValueError:
            raise CudaCallFailed(f"{self._program} says that the process {pid} is {_shown(output, code)}") from None

    async def act(self, action: CudaAction, pid: int, limit_seconds: float) -> None:
        timeout = ("--timeout", str(round(limit_seconds * 1000))) if action is CudaAction.LOCK else ()
        limit_seconds += self._margin_seconds if timeout else 0.0
        code, output = await self._run(limit_seconds, "--action", action, "--pid", str(pid), *timeout)
        if code < 0:
            # Ended by a signal: the driver's work on the process may be half done.
            raise CudaCallFailed(f"{self._program} --action {action} was killed by signal {-code}", is_settled=False)
        if code != 0:
            raise CudaCallFailed(f"{self._program} --action {action}: {_shown(output, code)}")

    async def close(self) -> None:
        """Nothing stays between two calls."""

    async def _run(self, limit_seconds: float, *arguments: str) -> tuple[int, str]:
        command = (*(() if os.geteuid() == 0 else ("sudo", "-n")), self._program, *arguments)
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - it is waited for in a thread
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise CudaUnusable(f"{command[0]} could not be run: {error}") from error
        work = asyncio.get_running_loop().run_in_executor(None, _communicate, process, limit_seconds)
        await wait_uncancelled(work)
        output = work.result()
        if output is None:
            reason = f"{' '.join(command)} took longer than {limit_seconds:g} s"
            raise CudaCallFailed(reason, is_settled="--get-state" in arguments)
        return process.returncode, output.decode(errors="replace")


def _communicate(process: "subprocess.Popen[bytes]", limit_seconds: float) -> bytes | None:
    """What it printed; None if it took longer and was killed."""
    with process:
        try:
            return process.communicate(timeout=limit_seconds)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _shown(output: str, code: int) -> str:
    return " ".join(output.split())[-OUTPUT_CHARACTERS:] or f"it ended with exit code {code} and said nothing"
