"""Progress of long work on the terminal; elsewhere nothing is shown."""

from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


class Steps:
    """Shows on standard error which step is under way, while the block lasts."""

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
        """A further step, of ``total`` parts if that is known; the result is to be told how many are done."""
        task = self._progress.add_task(name, total=total)

        def done(parts: float) -> None:
            self._progress.update(task, completed=parts)

        return done
