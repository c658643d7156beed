"""Runs the demo: server, clients, monitor and display on one event loop, and the engines as processes."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from llmux.errors import LlmuxError
from llmux.gpus.hook import VARIABLE
from llmux.server.app import Server, serve
from llmux.simulation.client import Expectation, LoadGenerator
from llmux.simulation.demo.answers import Pictures, right_answer
from llmux.simulation.demo.scenarios import CHATS, Scenario
from llmux.simulation.demo.setup import DemoSetup, build_setup
from llmux.simulation.demo.state import DemoState, Monitor
from llmux.simulation.demo.summary import Summary, summarise
from llmux.simulation.demo.view import Display
from llmux.simulation.gpus import HOOK

SAMPLE_SECONDS = 0.05
"""A tenth of the shortest switch, so that shares of time are right within some per cent."""
SAMPLES_PER_FRAME = 2
DRAIN_SECONDS = 2.0
CLIENTS_MAX = 300
"""Requests open at a time; the demo's arrival rate stays far below it."""
TIME_LIMIT_SECONDS = 60.0
"""A request without a complete answer by then counts as lost."""
WORK_LIMIT_SECONDS = 20.0
"""A prompt that was accepted and has no picture by then counts as lost. As many as the image server gets at once
take it a fifth of that."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to run. Without ``with_traffic`` it serves until a signal comes; port 0 is any free one."""

    seconds: float = 20.0
    seed: int = 1
    with_traffic: bool = True
    port: int = 0
    scenario: Scenario = CHATS
    changes: Mapping[str, Any] | None = None
    """Top-level keys of the configuration that replace the scenario's."""
    work_limit_seconds: float = WORK_LIMIT_SECONDS


class Demo:
    """One run. ``summary`` and ``state`` are set once it has served, ``interrupted_by`` once a signal has come."""

    def __init__(self, options: DemoOptions, display: Display) -> None:
        self._options = options
        self.display = display
        self._server: Server | None = None
        self._server_is_up = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self.state: DemoState | None = None
        self.summary: Summary | None = None
        self.interrupted_by: signal.Signals | None = None

    async def run(self) -> None:
        """Run to the end or to a signal and leave nothing behind; raises LlmuxError, alone or in a group."""
        os.environ[VARIABLE] = HOOK
        with tempfile.TemporaryDirectory(prefix="llmux-demo-") as directory:
            options = self._options
            setup = build_setup(options.scenario, Path(directory), options.port, options.changes)
            async with asyncio.TaskGroup() as tasks:
                server_task = tasks.create_task(self._serve(setup))
                await self._server_is_up.wait()
                if self._server is None:
                    return
                self.state = state = self._begin(self._server, setup)
                watcher = tasks.create_task(self._watch(state))
                self._work = tasks.create_task(_work(state))
                if self.interrupted_by is not None:
                    self._work.cancel()
                await asyncio.wait({self._work})
                state.monitor.sample()
                # Everything but the GPUs is summed up now: the server's shutdown is not part of the run.
                summarise_run = _summary_until_now(state)
                state.is_stopping = True
                self._server.begin_shutdown(DRAIN_SECONDS)
                await asyncio.wait({server_task})
                watcher.cancel()
            self.summary = summarise_run(gpus=[ledger.snapshot() for ledger in setup.ledgers])

    async def _serve(self, setup: DemoSetup) -> None:
        try:
            await serve(setup.settings, on_ready=self._ready)
        except BaseExceptionGroup as group:
            error = _only_error(group)
            if error is None:
                raise
            raise error from None
        finally:
            self._server_is_up.set()

    def _ready(self, server: Server) -> None:
        """Take over the signals: the server's own handlers would reject the requests of clients still arriving."""
        self._server = server
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._signalled, number)
        self._server_is_up.set()

    def _signalled(self, number: signal.Signals) -> None:
        if self.interrupted_by is not None and self._server is not None:
            self._server.begin_shutdown(0.0)
        self.interrupted_by = number
        if self._work is not None:
            self._work.cancel()

    def _begin(self, server: Server, setup: DemoSetup) -> DemoState:
        options = self._options
        monitor = Monitor(server.operations)
        monitor.sample()
        traffic = None
        if options.with_traffic:
            traffic = LoadGenerator(
                options.scenario.traffic(options.seed, options.seconds),
                clients_max=CLIENTS_MAX,
                expected=Expectation(right_answer, Pictures(setup.pictures, options.work_limit_seconds).painted),
                time_limit_seconds=TIME_LIMIT_SECONDS,
            )
        url = f"http://{setup.settings.host}:{server.port}"
        state = DemoState(options.scenario, url, monitor, setup.ledgers, options.seconds, traffic)
        self.display.announce(state)
        return state

    async def _watch(self, state: DemoState) -> None:
        samples = 0
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            state.monitor.sample()
            samples += 1
            if samples % SAMPLES_PER_FRAME == 0:
                self.display.show(state)


async def _work(state: DemoState) -> None:
    """Run the clients to their end, or wait for a cancellation if there are none."""
    if state.traffic is None:
        await asyncio.Event().wait()
        return
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(state.url, connector=connector, timeout=timeout) as session:
        await state.traffic.run(session)


def _summary_until_now(state: DemoState) -> "partial[Summary]":
    """``summarise`` with all arguments but the GPUs'."""
    seconds = state.monitor.elapsed_seconds
    return partial(
        summarise,
        models=[model.name for model in state.scenario.models],
        outcomes=[] if state.traffic is None else list(state.traffic.outcomes),
        switches=list(state.monitor.switches),
        shares=state.monitor.timeline.shares(seconds),
        seconds=seconds,
    )


def _only_error(group: BaseExceptionGroup[BaseException]) -> LlmuxError | None:
    """The first LlmuxError of a group that holds no other exceptions."""
    known, unknown = group.split(LlmuxError)
    if known is None or unknown is not None:
        return None
    first = known.exceptions[0]
    return _only_error(first) if isinstance(first, BaseExceptionGroup) else first
