"""One model's engine without a server around it, for the commands that work on it alone."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

from llmux.config.settings import Settings
from llmux.engines.questions import probe
from llmux.errors import ControlCallFailed, LlmuxError, ModelNotFound
from llmux.gpus.memory import GpuHeadroom, total_used_mib
from llmux.hosts.local import find_descendants, held_mib
from llmux.instances.checkpoint_store import CheckpointStore
from llmux.instances.control_calls import ControlSession, EngineEndpoints
from llmux.instances.instance import Instance
from llmux.instances.outcomes import WakeOutcome
from llmux.server.build import build_cuda, build_headroom, engine_specs

OnProgress: TypeAlias = Callable[[str], None]
"""Called with what is being done now, for the operator."""


class WakeFailed(LlmuxError):
    """The engine could not be started, restored or woken."""

    @classmethod
    def raise_for(cls, outcome: WakeOutcome) -> None:
        """Raise if the wake failed."""
        if outcome.error is not None:
            raise cls(str(outcome.error))


class NotStartedHere(LlmuxError):
    """The command works on an engine that llmux starts and ends itself, and this one's kind is another."""

    def __init__(self, model: str, kind: str) -> None:
        super().__init__(f"'{model}' has a {kind} engine, which llmux does not start: this command cannot work on it")


class ProbeFailed(LlmuxError):
    """An engine that runs does not answer a small question."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engine does not answer: {reason}")


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory at one moment: what is used of the GPUs, and what the engine's processes hold of the host."""

    gpu_mib: int | None
    """None if the GPUs cannot be read."""
    host_mib: int


@dataclass(frozen=True, slots=True)
class StandaloneEngine:
    """The engine, and what is measured of it."""

    instance: Instance
    endpoints: EngineEndpoints
    headroom: GpuHeadroom

    async def ask(self) -> str:
        """The answer to the probe; raises ProbeFailed."""
        try:
            return await probe(self.endpoints, self.instance.spec.engine.served_names[0])
        except ControlCallFailed as failure:
            raise ProbeFailed(str(failure)) from failure

    async def measure(self) -> Memory:
        """Memory as it is now."""
        gpus = await self.headroom.read()
        shim = self.instance.shim_pid
        host_mib = 0 if shim is None else held_mib(find_descendants(shim))
        return Memory(total_used_mib(gpus) if gpus else None, host_mib)


@asynccontextmanager
async def open_standalone(
    settings: Settings, model: str, *, images: CheckpointStore | None
) -> AsyncIterator[StandaloneEngine]:
    """The model's engine, not started yet; whatever state it is in at the end, it is ended.

    Raises ModelNotFound, NotStartedHere.
    """
    if model not in settings.models:
        raise ModelNotFound(model, list(settings.models))
    engine = settings.engine_of(model)
    if not engine.runs_as_process:
        raise NotStartedHere(model, engine.kind)
    spec = engine_specs(settings)[model]
    async with ControlSession() as session:
        endpoints = EngineEndpoints(session, spec.port, spec.api_key, redact=spec.redactor.redact)
        headroom = build_headroom(settings, model)
        cuda = build_cuda(settings)
        instance = Instance(spec, endpoints, lambda reason: None, store=images, headroom=headroom, cuda=cuda)
        try:
            yield StandaloneEngine(instance, endpoints, headroom)
        finally:
            instance.interrupt("llmux is ending")
            await instance.end()
            await cuda.close()
