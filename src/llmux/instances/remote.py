"""A server that runs without llmux: it is only asked whether it is there."""

import structlog

from llmux import os_errors
from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Cold
from llmux.engines.remote import Remote
from llmux.errors import ControlCallFailed, FailureReason
from llmux.instances.addresses import OnLeaving
from llmux.instances.canary import Canary
from llmux.instances.control_calls import EngineEndpoints
from llmux.instances.engine_spec import EngineSpec
from llmux.instances.health import Health, health_after
from llmux.instances.outcomes import EvictOutcome, WakeOutcome
from llmux.instances.without_process import InstanceWithoutProcess

log = structlog.get_logger("engine")

CHECK_SECONDS = 10.0
"""A name to be looked up, a handshake and an answer, over a slow line."""


class RemoteInstance(InstanceWithoutProcess):
    """The server of one model with ``engine: remote``."""

    def __init__(
        self,
        spec: EngineSpec,
        engine: Remote,
        endpoints: EngineEndpoints,
        *,
        on_leaving: OnLeaving = lambda upstream: None,
    ) -> None:
        super().__init__(spec, endpoints, Canary(engine, None), on_leaving)
        self._engine = engine

    @property
    def address(self) -> str:
        """Its URL."""
        return self.upstream.address

    @property
    def output_tail(self) -> tuple[str, ...]:
        """What it prints, its own operator reads."""
        return ()

    async def wake(self, devices: tuple[str, ...] = ()) -> WakeOutcome:
        """Ask once whether it serves."""
        try:
            await self._engine.check(self._endpoints, CHECK_SECONDS)
        except ControlCallFailed as failure:
            return WakeOutcome(self._explain(failure))
        log.info("the remote server answers", model=self.spec.model, url=self.upstream.url)
        return WakeOutcome()

    async def evict(self, eviction: Eviction, *, freeze: bool = False) -> EvictOutcome:
        """Close the connections to it."""
        self._on_leaving(self.upstream)
        return EvictOutcome(Asleep(eviction) if eviction.keeps_process else Cold())

    async def end(self) -> None:
        """There is nothing of it here."""
        self._on_leaving(self.upstream)

    def interrupt(self, reason: str) -> None:
        """A ``wake`` under way has a short time limit of its own, and leaves nothing behind."""

    async def check_health(self, timeout_seconds: float) -> Health:
        """Whether it serves."""
        try:
            await self._engine.check(self._endpoints, timeout_seconds)
        except ControlCallFailed as failure:
            return health_after(failure)
        return Health.ALIVE

    async def generates(self, limit_seconds: float) -> bool:
        """It is taken to: another server's patience is its own business, and a question may cost money."""
        return True

    def kill(self) -> None:
        """There is nothing to kill."""

    def _explain(self, failure: ControlCallFailed) -> FailureReason:
        """For the operator with the URL and what to do, for clients what has happened."""
        url, key = self.upstream.url, f"models.{self.spec.model}"
        match failure.status:
            case 401:
                what, remedy = "the remote server does not take the key (401)", f"correct {key}.api_key"
            case int(status) if 300 <= status < 400:
                what = f"the remote server redirects elsewhere ({status})"
                remedy = f"write the address that it redirects to into {key}.url"
            case int(status):
                what, remedy = f"the remote server answers with status {status}", "see its own log"
            case None if failure.is_timeout:
                what, remedy = "the remote server did not answer in time", f"is {key}.url right, and is it reachable?"
            case _:
                what, remedy = os_errors.explain_unreachable(failure.__cause__)
        return FailureReason(f"{url}: {what} ({failure}); {remedy}", f"{what}; {remedy}")
