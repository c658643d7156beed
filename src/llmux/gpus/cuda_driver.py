"""CUDA's checkpoints through the driver's API, in a helper process (``driver_helper``) that lives as long as llmux."""

import asyncio
import contextlib
import itertools
import json
import sys
from typing import Any, cast

import structlog

from llmux.cancellation import wait_uncancelled
from llmux.gpus.cuda import CudaAction, CudaCallFailed, CudaState, CudaUnusable

log = structlog.get_logger("llmux.gpus")

COMMAND = (sys.executable, "-P", "-m", "llmux.gpus.driver_helper")
START_SECONDS = 60.0
"""Initialising CUDA takes seconds on a machine with many GPUs and no persistence mode."""
STATE_SECONDS = 30.0
MARGIN_SECONDS = 5.0
"""For the way to the helper and back, beyond the time that the driver has for a lock."""
LINE_BYTES_MAX = 65_536
END_SECONDS = 5.0


class CudaDriver:
    """Keeps one helper. One that has died, or in which a call hangs, is replaced at the next call."""

    def __init__(
        self,
        command: tuple[str, ...] = COMMAND,
        *,
        start_seconds: float = START_SECONDS,
        margin_seconds: float = MARGIN_SECONDS,
    ) -> None:
        self._command = command
        self._start_seconds = start_seconds
        self._margin_seconds = margin_seconds
        self._helper: _Helper | None = None
        self._replaced: list[_Helper] = []
        """Those that are not asked any more, and may not have ended yet."""
        self._starting = asyncio.Lock()

    def __str__(self) -> str:
        return "the driver's API"

    async def check(self) -> None:
        """Start the helper; raises CudaUnusable."""
        await self._usable_helper()

    async def state(self, pid: int) -> CudaState | None:
        request = {"do": "state", "pid": pid}
        try:
            answer = await self._ask(request, STATE_SECONDS)
        except _HelperDied:
            # It has died meanwhile, perhaps of something else; to ask again does no harm.
            answer = await self._ask(request, STATE_SECONDS)
        try:
            word = answer["state"]
            return None if word is None else CudaState(word)
        except (KeyError, ValueError):
            raise CudaCallFailed(f"the driver's helper answered {answer!r}") from None

    async def act(self, action: CudaAction, pid: int, limit_seconds: float) -> None:
        request: dict[str, Any] = {"do": str(action), "pid": pid}
        if action is CudaAction.LOCK:
            request["timeout_ms"] = round(limit_seconds * 1000)
            limit_seconds += self._margin_seconds
        await self._ask(request, limit_seconds)

    async def close(self) -> None:
        """End the helper."""
        helpers = [*self._replaced, *(() if self._helper is None else (self._helper,))]
        self._replaced, self._helper = [], None
        await asyncio.gather(*(helper.end() for helper in helpers))

    async def _ask(self, request: dict[str, Any], limit_seconds: float) -> dict[str, Any]:
        helper = await self._usable_helper()
        what = f"{request['do']} of the process {request['pid']}"
        is_settled = request["do"] == "state"  # it changes nothing
        try:
            async with asyncio.timeout(limit_seconds):
                answer = await helper.ask(request)
        except TimeoutError:
            # The thread hangs in the driver for good. Calls under way for other processes may come to their end.
            helper.retire()
            reason = f"the driver's {what} took longer than {limit_seconds:g} s"
            raise CudaCallFailed(reason, is_settled=is_settled) from None
        except _HelperGone as gone:
            raise _HelperDied(f"{gone} during the {what}", is_settled=is_settled) from gone
        if (error := answer.get("error")) is not None:
            raise CudaCallFailed(f"the driver refuses the {what}: {error}")
        return answer

    async def _usable_helper(self) -> "_Helper":
        async with self._starting:
            if self._helper is not None and (self._helper.is_gone or self._helper.is_retired):
                self._replaced = [one for one in self._replaced if not one.has_ended] + [self._helper]
                self._helper = None
            if self._helper is None:
                self._helper = await self._start()
            return self._helper

    async def _start(self) -> "_Helper":
        try:
            _, helper = await asyncio.get_running_loop().subprocess_exec(
                _Helper, *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=None
            )
        except OSError as error:
            raise CudaUnusable(f"the driver's helper could not be started: {error}") from error
        try:
            async with asyncio.timeout(self._start_seconds):
                greeting = await helper.greeting
        except TimeoutError:
            await helper.end()
            raise CudaUnusable(f"the driver did not answer within {self._start_seconds:g} s") from None
        except _HelperGone as gone:
            await helper.end()
            raise CudaUnusable(str(gone)) from gone
        except BaseException:
            await helper.end()
            raise
        if "ready" not in greeting:
            await helper.end()
            raise CudaUnusable(str(greeting.get("unusable", f"the driver's helper said {greeting!r}")))
        return helper


class _HelperDied(CudaCallFailed):
    """The helper has ended before it has answered."""


class _HelperGone(Exception):
    """The helper has ended, or is not to be used any more."""


class _Helper(asyncio.SubprocessProtocol):
    """One helper process: what was asked and is not answered yet."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.greeting: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.is_gone = False
        self.is_retired = False
        self._ended: asyncio.Future[None] = loop.create_future()
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count(1)
        self._partial = b""
        self._transport: asyncio.SubprocessTransport | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone."""
        return self._ended.done()

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer; raises _HelperGone."""
        if self.is_gone or self._transport is None:
            raise _HelperGone("the driver's helper has ended")
        number = next(self._ids)
        answered = self._pending[number] = asyncio.get_running_loop().create_future()
        writer = cast("asyncio.WriteTransport", self._transport.get_pipe_transport(0))
        writer.write(json.dumps({"id": number, **request}).encode() + b"\n")
        try:
            answer: dict[str, Any] = await answered
            return answer
        finally:
            self._pending.pop(number, None)
            self._end_if_idle()

    def retire(self) -> None:
        """End it as soon as nothing else is under way."""
        self.is_retired = True
        self._end_if_idle()

    async def end(self) -> None:
        """Kill it, and return when it is gone, or hangs in the kernel."""
        self._kill()
        await wait_uncancelled(self._ended, END_SECONDS)

    def _end_if_idle(self) -> None:
        if self.is_retired and not self._pending:
            self._kill()

    def _kill(self) -> None:
        self._fail("the driver's helper was ended")
        if self._transport is not None:
            with contextlib.suppress(ProcessLookupError):
                self._transport.kill()
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are of no class of asyncio's.
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        try:
            if len(self._partial) > LINE_BYTES_MAX:
                raise ValueError("a line without an end")
            for line in lines:
                self._take(json.loads(line))
        except (ValueError, TypeError, AttributeError) as error:
            # Whose answer it was cannot be told any more.
            log.error("the driver's helper is ended: it says what is no answer", reason=str(error))
            self._kill()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._fail("the driver's helper has ended")

    def process_exited(self) -> None:
        status = None if self._transport is None else self._transport.get_returncode()
        self._fail(f"the driver's helper has ended with {status}")
        if self._transport is not None:
            self._transport.close()
        if not self._ended.done():
            self._ended.set_result(None)

    def _take(self, document: object) -> None:
        if not isinstance(document, dict):
            raise ValueError(f"{document!r} is no object")
        if not self.greeting.done():
            self.greeting.set_result(document)
            return
        answered = self._pending.get(document.get("id", 0))
        # None: the call was given up.
        if answered is not None and not answered.done():
            answered.set_result(document)

    def _fail(self, reason: str) -> None:
        self.is_gone = True
        for future in (self.greeting, *self._pending.values()):
            if not future.done():
                future.set_exception(_HelperGone(reason))
                future.exception()  # nobody may be waiting any more
