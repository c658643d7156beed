"""An engine that llmux knows by the operator's shell commands alone: one wakes it, one puts it to sleep."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llmux.core.eviction import Eviction, Process, Weights
from llmux.engines.steps import Step
from llmux.engines.without_process import EngineWithoutProcess
from llmux.errors import Problem, UnsupportedEviction

OFFLOAD = Eviction(Weights.OFFLOAD, Process.KEEP_RUNNING)


@dataclass(frozen=True, slots=True)
class Hooks(EngineWithoutProcess):
    """Brought onto the GPU by ``wake_command`` and off it by ``sleep_command``, however these do it.

    Its evictions have no steps: ``HookedInstance`` runs the command.
    """

    kind: ClassVar[str] = "hooks"
    default_eviction: ClassVar[Eviction | None] = OFFLOAD
    own_keys: ClassVar[frozenset[str]] = frozenset(
        ("wake_command", "sleep_command", "alive_command", "url", "api_key", "ready_path")
    )
    keys_without_use: ClassVar[frozenset[str]] = frozenset(("command", "extra_args", "checkpoint_path"))

    def problems(self, eviction: Eviction) -> Iterator[Problem]:
        yield from super(Hooks, self).problems(eviction)
        for key, command in (
            ("wake_command", self.options.wake_command),
            ("sleep_command", self.options.sleep_command),
        ):
            if not command:
                yield Problem(key, "is missing", "name a shell command; 'true', if nothing has to be done")

    def steps(self, eviction: Eviction, *, freeze: bool = False) -> tuple[Step, ...]:
        if eviction.process is not Process.STOP and eviction != OFFLOAD:
            raise UnsupportedEviction(eviction)
        return ()

    def why_not(self, eviction: Eviction) -> str | None:
        reason = super(Hooks, self).why_not(eviction)
        return reason and f"a hooks engine leaves by its sleep_command, and {eviction} says more than is known of that"
