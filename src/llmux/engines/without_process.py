"""What the kinds of engines that llmux does not start have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llmux.engines.base import Engine


@dataclass(frozen=True, slots=True)
class EngineWithoutProcess(Engine):
    """An engine with neither a program nor a command line; its ``model_path`` is only the name that it knows."""

    default_program: ClassVar[str] = ""
    runs_as_process: ClassVar[bool] = False
    can_be_dumped: ClassVar[bool] = False
    needs_model_path: ClassVar[bool] = False

    @property
    def served_names(self) -> tuple[str, ...]:
        return (self.options.model_path or self.options.name,)

    def command_line(self, port: int, socket_path: Path | None = None) -> tuple[str, ...]:
        return ()
