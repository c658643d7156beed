"""Showing the demo while it runs: a live view on a terminal, else a plain line now and then."""

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live

from llmux.simulation.demo.board import Board, Stage, curl_lines
from llmux.simulation.demo.observation import OFF_GPU, ModelView
from llmux.simulation.demo.records import Ending
from llmux.simulation.demo.style import WORDS, duration
from llmux.simulation.demo.view import render

LINE_SECONDS = 1.0


class Display(Protocol):
    """Shows a board; a context."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def announce(self, board: Board) -> None:
        """Once, when the server listens."""

    def show(self, board: Board) -> None:
        """Often; the display itself limits what it writes."""


class LiveDisplay:
    """A picture that is drawn over and over; what is logged appears above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def announce(self, board: Board) -> None:
        """See ``Display``."""
        self.show(board)

    def show(self, board: Board) -> None:
        """See ``Display``."""
        self._live.update(render(board, self._console.width, self._console.height), refresh=True)


class PlainDisplay:
    """A line a second; without traffic, a line when something has changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_at = 0.0
        self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def announce(self, board: Board) -> None:
        """See ``Display``."""
        self._write(f"llmux demo: listening on {board.url}")
        if board.traffic is None:
            self._write("\n".join(["try:", *curl_lines(board.url, "qwen"), f"status page: {board.url}/"]))

    def show(self, board: Board) -> None:
        """See ``Display``."""
        elapsed = board.elapsed_seconds
        if elapsed < self._next_at or board.stage is Stage.STOPPING:
            return
        self._next_at = elapsed + LINE_SECONDS
        said = line(board)
        if board.traffic is None and said == self._shown:
            return
        self._shown = said
        self._write(f"{elapsed:5.1f} s  {said}")

    def _write(self, text: str) -> None:
        self._console.out(text, highlight=False)


def line(board: Board) -> str:
    """The board in one line."""
    parts = [_model(view) for view in board.observation.samples[-1].models]
    traffic = board.traffic
    if traffic is not None:
        counts = [f"{traffic.count(ending)} {ending}" for ending in (Ending.ANSWERED, Ending.LEFT, Ending.LOST)]
        parts.append(", ".join([f"{traffic.open} open", *counts]))
    return " | ".join(parts)


def _model(view: ModelView) -> str:
    text = f"{view.name} {WORDS[view.phase]}"
    if view.phase not in OFF_GPU and view.in_flight:
        text += f" {view.in_flight}"
    if view.waiting:
        text += f", {view.waiting} waiting ({duration(view.oldest_wait_seconds)})"
    return text
