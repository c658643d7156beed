"""Any server with an OpenAI-compatible API, known only by the commands that start and stop it."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llmux.core.eviction import Eviction, Process
from llmux.engines.base import Engine
from llmux.engines.steps import Step
from llmux.errors import Problem, UnsupportedEviction

_PLACEHOLDER = re.compile(r"\{(port|model|name)\}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_DIGEST_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Command(Engine):
    """A server that is started by a template of its command line, and can do nothing that llmux would have to know."""

    kind: ClassVar[str] = "command"
    default_program: ClassVar[str] = ""
    keep_alive_seconds: ClassVar[float] = 4.0
    """Most servers close an idle connection after 5 s."""
    own_keys: ClassVar[frozenset[str]] = frozenset(("start_command", "stop_command", "ready_path", "api_key"))
    needs_model_path: ClassVar[bool] = False
    completes_flags: ClassVar[bool] = False

    @property
    def start_words(self) -> tuple[str, ...]:
        """The template of the command that starts it."""
        return self.options.start_command

    @property
    def stop_words(self) -> tuple[str, ...]:
        """The template of the command that stops it; empty if ending its process does."""
        return self.options.stop_command

    @property
    def health_path(self) -> str:
        return self.options.ready_path or super(Command, self).health_path

    @property
    def served_names(self) -> tuple[str, ...]:
        uses_name = any("{name}" in word for word in self.start_words)
        return (self.name_in_commands if uses_name else self.options.name,)

    @property
    def name_in_commands(self) -> str:
        """What ``{name}`` stands for: the model's name, which a container is only called if its characters allow it."""
        name = self.options.name
        return container_name(name) if self.stop_words else name

    @property
    def listens_itself(self) -> bool:
        return not self.stop_words

    def problems(self, eviction: Eviction) -> Iterator[Problem]:
        yield from super(Command, self).problems(eviction)
        if not self.start_words:
            yield Problem(
                "start_command",
                "is missing",
                "write the whole command line, as 'llama-server -m {model} --host 127.0.0.1 --port {port}'",
            )
            return
        if (wrong := self.program_problem()) is not None:
            yield wrong
        yield from self._port_problems()
        if self.options.ready_path and not self.options.ready_path.startswith("/"):
            yield Problem("ready_path", "is no path of a URL", f"write /{self.options.ready_path}")

    def program_problem(self) -> Problem | None:
        """What is wrong with the model's own ``command``."""
        if self.options.program == self.filled(self.start_words)[0]:
            return None
        return Problem("command", "start_command names the program", "remove it")

    def _port_problems(self) -> Iterator[Problem]:
        words = self.start_words
        if not self.options.has_port and not any("{port}" in word for word in words):
            yield Problem(
                "start_command",
                "has no {port}, so that llmux cannot tell the server where to listen",
                "write {port} where its port belongs, or give the model the port that the server always uses",
            )

    def command_line(self, port: int, socket_path: Path | None = None) -> tuple[str, ...]:
        return (*self.filled(self.start_words, port), *self.arguments)

    def stop_command(self, port: int) -> tuple[str, ...]:
        return self.filled(self.stop_words, port)

    def filled(self, words: Sequence[str], port: int | None = None) -> tuple[str, ...]:
        """The words with their placeholders replaced, without a port all but its own; other braces stay as they are."""
        values = {"model": self.options.model_path, "name": self.name_in_commands}
        return tuple(_filled(word, values if port is None else {**values, "port": str(port)}) for word in words)

    def steps(self, eviction: Eviction, *, freeze: bool = False) -> tuple[Step, ...]:
        if eviction.process is Process.CHECKPOINT and self.stop_words:
            raise UnsupportedEviction(eviction, "what its stop command ends is beyond criu's reach")
        if eviction.process is Process.KEEP_RUNNING:
            raise UnsupportedEviction(eviction)
        return super(Command, self).steps(eviction, freeze=freeze)


def _filled(word: str, values: Mapping[str, str]) -> str:
    # In one go, so that what a placeholder stands for is not searched for others.
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), word)


def container_name(name: str) -> str:
    """The name, or where docker and its like would refuse it as a container's, one as near as possible and unique."""
    safe = _UNSAFE.sub("-", name)
    if safe == name and len(name) > 1 and name[0].isalnum():
        return name
    digest = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{safe.lstrip('-._') or 'model'}-{digest}"
