"""Runs the demo: server, clients, observation and display on one event loop, and the engines as processes."""

import asyncio
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llmux.errors import LlmuxError
from llmux.server.app import Server, serve
from llmux.simulation.demo.arrivals import arrivals
from llmux.simulation.demo.board import Board
from llmux.simulation.demo.display import Display
from llmux.simulation.demo.observation import Observation
from llmux.simulation.demo.scenario import MODELS, Scenario, build_scenario
from llmux.simulation.demo.summary import Summary, summarise
from llmux.simulation.demo.traffic import Traffic
from llmux.simulation.gpus import HOOK
from llmux.simulation.ledger import Ledger

LOOK_SECONDS = 0.05
LOOKS_PER_FRAME = 2
DRAIN_SECONDS = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to run. Without ``with_traffic`` it serves until a signal comes; port 0 is any."""

    seconds: float = 20.0
    seed: int = 1
    with_traffic: bool = True
    port: int = 0


class Demo:
    """One run. ``summary`` and ``board`` are set if it came to serving, ``interrupted_by`` if a signal came."""

    def __init__(self, options: DemoOptions, display: Display) -> None:
        self._options = options
        self.display = display
        self._server: Server | None = None
        self._server_is_up = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self.board: Board | None = None
        self.summary: Summary | None = None
        self.interrupted_by: signal.Signals | None = None

    async def run(self) -> None:
        """Run to the end or to a signal and leave nothing behind; raises LlmuxError, alone or in a group."""
        with tempfile.TemporaryDirectory(prefix="llmux-demo-") as directory:
            scenario = build_scenario(Path(directory), self._options.port)
            async with asyncio.TaskGroup() as tasks:
                server_task = tasks.create_task(self._serve(scenario))
                await self._server_is_up.wait()
                if self._server is None:
                    return
                self.board = board = self._begin(self._server, scenario)
                watcher = tasks.create_task(self._watch(board))
                self._work = tasks.create_task(self._make_traffic(board))
                if self.interrupted_by is not None:
                    self._work.cancel()
                await asyncio.wait({self._work})
                board.observation.look()
                run = _Run(board)
                board.is_stopping = True
                self._server.begin_shutdown(DRAIN_SECONDS)
                await asyncio.wait({server_task})
                watcher.cancel()
            self.summary = run.summarise(scenario.ledger)

    async def _serve(self, scenario: Scenario) -> None:
        try:
            await serve(scenario.settings, on_ready=self._ready)
        except BaseExceptionGroup as group:
            error = _only_error(group)
            if error is None:
                raise
            raise error from None
        finally:
            self._server_is_up.set()

    def _ready(self, server: Server) -> None:
        """The server's own reaction to signals would refuse the clients that still come: these have to go first."""
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

    def _begin(self, server: Server, scenario: Scenario) -> Board:
        options = self._options
        observation = Observation(server.operations)
        observation.look()
        traffic = Traffic(arrivals(options.seed, options.seconds)) if options.with_traffic else None
        url = f"http://{scenario.settings.host}:{server.port}"
        board = Board(url, observation, scenario.ledger, options.seconds, traffic)
        self.display.announce(board)
        return board

    async def _make_traffic(self, board: Board) -> None:
        if board.traffic is None:
            await asyncio.Event().wait()
        else:
            await board.traffic.run(board.url)

    async def _watch(self, board: Board) -> None:
        looks = 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            board.observation.look()
            looks += 1
            if looks % LOOKS_PER_FRAME == 0:
                self.display.show(board)


class _Run:
    """What the figures are made of, as it is when the last client has its answer: the end of the server is no part."""

    def __init__(self, board: Board) -> None:
        self._records = [] if board.traffic is None else list(board.traffic.records)
        self._switches = list(board.observation.switches)
        self._shares = board.observation.shares
        self._seconds = board.elapsed_seconds

    def summarise(self, ledger: Ledger) -> Summary:
        names = [model.name for model in MODELS]
        return summarise(names, self._records, self._switches, self._shares, ledger.snapshot(), self._seconds)


def _only_error(group: BaseExceptionGroup[BaseException]) -> LlmuxError | None:
    """The first of our own errors in a group that holds nothing else."""
    known, unknown = group.split(LlmuxError)
    if known is None or unknown is not None:
        return None
    first = known.exceptions[0]
    return _only_error(first) if isinstance(first, BaseExceptionGroup) else first
