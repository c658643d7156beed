"""Progress bars on a terminal for long work; nothing where standard error is not a terminal."""

from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


class ProgressBars:
    """Shows one bar per part of the work on standard error, while the block lasts."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, name: str, total: int | None) -> Callable[[float], None]:
        """Add a bar, of ``total`` units if that is known. The result is called with the number of units done so far."""
        task = self._progress.add_task(name, total=total)

        def update(completed: float) -> None:
            self._progress.update(task, completed=completed)

        return update
