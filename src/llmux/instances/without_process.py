"""What the instances of all engines that llmux does not start have in common."""

from llmux.access import Upstream
from llmux.core.eviction import Eviction
from llmux.instances.addresses import OnLeaving
from llmux.instances.canary import Canary
from llmux.instances.control_calls import EngineEndpoints
from llmux.instances.engine_spec import EngineSpec


class InstanceWithoutProcess:
    """The engine of one model, of which nothing is known but its API and the operator's commands."""

    def __init__(self, spec: EngineSpec, endpoints: EngineEndpoints, canary: Canary, on_leaving: OnLeaving) -> None:
        self.spec = spec
        self.canary = canary
        self._endpoints = endpoints
        self._on_leaving = on_leaving

    @property
    def upstream(self) -> Upstream:
        """Where the engine serves requests."""
        return self._endpoints.upstream

    @property
    def pid(self) -> None:
        """llmux knows of no process."""
        return None

    def why_not(self, eviction: Eviction) -> str | None:
        """Why the engine cannot leave the GPU by an eviction; None if it can."""
        return self.spec.engine.why_not(eviction)

    async def delete_images(self) -> None:
        """There are none: no process, no image."""

    @property
    def works_after_answering(self) -> bool:
        """As of every engine that is known by nothing but its API: no."""
        return False

    async def has_work(self) -> bool:
        """Never asked."""
        return False
