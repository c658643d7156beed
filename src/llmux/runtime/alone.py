"""One model's engine without a server around it, for the commands that try it out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Cold
from llmux.engines.control_calls import ControlCallFailed, EngineEndpoints
from llmux.errors import LlmuxError
from llmux.gpus.memory import total_used_mib
from llmux.gpus.room import GpuRoom
from llmux.hosts.memory import find_descendants, held_mib
from llmux.runtime.instance import Instance
from llmux.runtime.warmup import probe

Tell: TypeAlias = Callable[[str], None]
"""Told what is being done now, for the operator."""


class ProbeFailed(LlmuxError):
    """An engine that runs does not answer a small question."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engine does not answer: {reason}")


@dataclass(frozen=True, slots=True)
class Memory:
    """What is used of the GPUs, None where that cannot be read, and what the engine's processes hold of the host."""

    gpu_mib: int | None
    host_mib: int


@dataclass(frozen=True, slots=True)
class EngineAlone:
    """The engine and what is asked about it."""

    instance: Instance
    endpoints: EngineEndpoints
    room: GpuRoom

    async def ask(self) -> str:
        """The answer to the probe; raises ProbeFailed."""
        try:
            return await probe(self.endpoints, self.instance.spec.served_names[0])
        except ControlCallFailed as failure:
            raise ProbeFailed(str(failure)) from failure

    async def measure(self) -> Memory:
        """Memory as it is now."""
        gpus = await self.room.read()
        shim = self.instance.shim_pid
        host_mib = 0 if shim is None else held_mib(find_descendants(shim))
        return Memory(total_used_mib(gpus) if gpus else None, host_mib)

    def other_than(self, eviction: Eviction, residency: Asleep | Cold) -> str | None:
        """Why the engine left in another way than it should; None where it did as it was told."""
        expected = Asleep(eviction) if eviction.keeps_process else Cold()
        if residency == expected:
            return None
        return self.instance.fallback_reason or f"the engine left by {residency} instead"
