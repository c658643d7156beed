"""``llmux run``: a command that gets GPU memory from a running llmux for as long as it runs."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import aiohttp
import typer
from pydantic import ValidationError

from llmux.cli.options import DEFAULT_URL, KeyOption, UrlOption, size_in_mib
from llmux.tools.leased_command import NOT_FOUND, LeasedCommand

NOT_IN_TIME = 75
"""``EX_TEMPFAIL`` of sysexits.h: try again later."""
TIME_IS_UP = 124
"""As of ``timeout``."""
NOT_RUN = 125
"""As of ``timeout``, ``env`` and ``docker run``, where they themselves have failed."""
CONNECT_SECONDS = 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
"""What a terminal sends to every process of its foreground."""


def _parse_size(text: str) -> int:
    try:
        return size_in_mib(text)
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r} {error.errors()[0]['msg']}") from None


def run(
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="The command and its arguments; no shell runs it.")
    ],
    gpu_memory: Annotated[
        int | None,
        typer.Option(
            "--gpu-memory", metavar="SIZE", parser=_parse_size, help="What it needs of each GPU, as 20GiB; else all."
        ),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, max=1024, metavar="N", help="How many GPUs it needs.")] = 1,
    max_seconds: Annotated[
        float | None,
        typer.Option("--max-seconds", min=0.001, metavar="S", help="Stop it when it has run for so long."),
    ] = None,
    wait_seconds: Annotated[
        float | None,
        typer.Option("--wait-seconds", min=0.001, metavar="S", help="Give up when it was not its turn in this time."),
    ] = None,
    url: UrlOption = DEFAULT_URL,
    admin_key: KeyOption = None,
) -> None:
    """Run a command with GPU memory that llmux's models make room for, and give it back when the command ends.

    It waits for its turn like a model that is overdue: models that are in the way end their answers and leave, as for
    another model. Where models are placed by memory, those that fit beside it are served meanwhile.

    Exit codes: the command's own; 75 if it was not its turn within --wait-seconds; 124 if it was stopped after
    --max-seconds; 125 if llmux refuses or cannot be reached; 126 or 127 if the command cannot be executed or found.

    Example: llmux run --gpu-memory 20GiB -- python train.py
    """
    if shutil.which(command[0]) is None and not Path(command[0]).exists():
        _fail(f"the command {command[0]!r} was not found", NOT_FOUND)
    body = {
        "command": Path(command[0]).name[:200],
        "gpu_memory_mib": gpu_memory,
        "gpus": gpus,
        "max_seconds": max_seconds,
        "wait_seconds": wait_seconds,
    }
    # Before there is any other thread.
    leased = LeasedCommand(command)
    raise typer.Exit(asyncio.run(_Run(leased, url, admin_key).run(body)))


class _Run:
    """From asking for the GPU lease to the end of the command."""

    def __init__(self, command: LeasedCommand, url: str, admin_key: str | None) -> None:
        self._command = command
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {admin_key}"} if admin_key else {}
        self._is_started = False
        self._time_is_up = False
        self._signal: int | None = None

    async def run(self, body: dict[str, Any]) -> int:
        """Returns the exit code."""
        loop, this = asyncio.get_running_loop(), asyncio.current_task()
        assert this is not None
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number, this)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session,
                session.post(f"{self._url}/control/leases", json=body) as answer,
            ):
                if answer.status != 200:
                    return self._refuse(await _reason(answer))
                lines = _lines(answer)
                held = await self._wait(lines)
                return await self._work(lines, held) if isinstance(held, dict) else held
        except aiohttp.ClientError as error:
            return self._refuse(f"{self._url} cannot be reached ({error}): is llmux running?")
        except asyncio.CancelledError:
            if self._signal is None or self._is_started:
                raise
            return self._refuse("given up", 128 + self._signal)

    async def _wait(self, lines: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | int:
        """What came with the GPU lease, or the exit code if there is none."""
        async for line in lines:
            match line["state"]:
                case "waiting":
                    _say(line["waits"]["text"])
                case "held":
                    return line
                case "refused":
                    return self._refuse(line["reason"], NOT_IN_TIME if line["is_timeout"] else NOT_RUN)
                case "released":
                    break
                case _:
                    pass
        return self._refuse("llmux has ended")

    async def _work(self, lines: AsyncIterator[dict[str, Any]], held: dict[str, Any]) -> int:
        self._is_started = True
        self._command.start(held["environment"])
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(self._listen(lines, held))
            code = await self._command.wait()
            listening.cancel()
        return TIME_IS_UP if self._time_is_up else code

    async def _listen(self, lines: AsyncIterator[dict[str, Any]], held: dict[str, Any]) -> None:
        """Do what llmux says of the lease until the command has ended, which cancels this."""
        began_at = asyncio.get_running_loop().time()
        why = "llmux has ended"
        with suppress(aiohttp.ClientError):
            async for line in lines:
                if line["state"] == "ending":
                    await self._stop(line["reason"], held["stop_seconds"], is_timeout=line["is_timeout"])
                    return
                if line["state"] == "released":
                    why = line["reason"]
                    break
        # Nobody else needs the GPU now. A llmux that is started meanwhile sees that the memory is not free.
        _say(f"{why}: the command goes on without a GPU lease")
        if held["max_seconds"] is not None:
            await asyncio.sleep(began_at + held["max_seconds"] - asyncio.get_running_loop().time())
            await self._stop(f"its {held['max_seconds']:g} s are over", held["stop_seconds"], is_timeout=True)

    async def _stop(self, reason: str, seconds: float, *, is_timeout: bool) -> None:
        _say(f"{reason}: the command is stopped")
        self._time_is_up = is_timeout
        await self._command.stop(seconds)

    def _on_signal(self, number: int, this: asyncio.Task[Any]) -> None:
        if not self._is_started:
            self._signal = number
            this.cancel()
        elif not (number in FROM_TERMINAL and _is_in_foreground()):
            self._command.forward(number)

    def _refuse(self, reason: str, code: int = NOT_RUN) -> int:
        self._command.give_up()
        _say(f"{reason}; the command was not run")
        return code


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.content:
        yield json.loads(line)


async def _reason(answer: aiohttp.ClientResponse) -> str:
    if answer.status == 401:
        return "give llmux's admin_key with --admin-key, or in LLMUX_ADMIN_KEY"
    try:
        return str((await answer.json())["error"])
    except (aiohttp.ClientError, ValueError, KeyError, TypeError):
        return f"the answer was {answer.status} {answer.reason}; is this the address of llmux?"


def _is_in_foreground() -> bool:
    """Whether a terminal's signals have reached the command too."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _say(text: str) -> None:
    typer.echo(f"llmux run: {text}", err=True)


def _fail(reason: str, code: int) -> NoReturn:
    _say(reason)
    raise typer.Exit(code)
