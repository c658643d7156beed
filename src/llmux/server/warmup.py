"""Warm-up: start each model, ask it once, and evict it, so that its first request finds it asleep instead of cold.

Clients are served meanwhile. A model is started by a command, to which no time limit of requests applies, and asked
under a lease like a client's, so that no switch takes it away in the middle of the question.
"""

import asyncio
from collections.abc import Mapping, Sequence
from time import monotonic

import structlog

from llmux.access import ModelAccess, Outcome, Upstream
from llmux.core.request import Request
from llmux.engines.calls import Endpoints
from llmux.engines.questions import is_refusal, probe
from llmux.errors import (
    CommandFailed,
    ControlCallFailed,
    EngineError,
    LlmuxError,
    RequestError,
    ShuttingDown,
)
from llmux.runtime.operations import Operations

log = structlog.get_logger("llmux.warmup")


class WarmupFailed(LlmuxError):
    """A model could not be warmed up; llmux ends."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"warm-up of '{model}' failed: {reason}")


class WarmUp:
    """One warm-up of some models, one after the other, each evicted in its configured way."""

    def __init__(
        self,
        operations: Operations,
        access: ModelAccess,
        engines: Mapping[str, Endpoints],
        served_names: Mapping[str, str],
        models: Sequence[str],
    ) -> None:
        """``engines`` are those that can be asked a question; others are only started.

        ``served_names`` are what the engines call the models.
        """
        self._operations = operations
        self._access = access
        self._engines = engines
        self._served_names = served_names
        self._models = models
        self._number = 1
        self._model_began_at = monotonic()

    @property
    def progress(self) -> str:
        """How far it is: ``warming up 2 of 5: qwen, 35 s``."""
        model = self._models[self._number - 1]
        seconds = monotonic() - self._model_began_at
        return f"warming up {self._number} of {len(self._models)}: {model}, {seconds:.0f} s"

    async def run(self) -> None:
        """Warm up every model. Raises WarmupFailed."""
        for number, model in enumerate(self._models, 1):
            self._number, self._model_began_at = number, monotonic()
            log.info("warming up", model=model, number=number, of=len(self._models))
            try:
                await self._operations.wake(model)
                if model in self._engines:
                    await self._ask(model)
                status = self._operations.model_status(model)
                if not status.in_flight and not status.queue_depth:
                    # Otherwise clients have asked for it, and it leaves as any model does that is in use.
                    await self._operations.sleep(model)
            except (CommandFailed, ControlCallFailed, EngineError, ShuttingDown) as error:
                raise WarmupFailed(model, str(error)) from error
            log.info("warmed up", model=model, seconds=round(monotonic() - self._model_began_at, 3))

    async def _ask(self, model: str) -> None:
        """Ask the model once. Raises ControlCallFailed, EngineError, ShuttingDown."""
        # Numbers of clients' requests begin with 1.
        lease = _Lease(Request(-self._number, model))
        self._access.acquire(lease.request, lease)
        outcome = Outcome.BROKEN
        try:
            await lease.granted
            async with asyncio.timeout(None) as limit:
                lease.lost.add_done_callback(lambda lost: limit.reschedule(asyncio.get_running_loop().time()))
                await probe(self._engines[model], self._served_names[model])
            outcome = Outcome.COMPLETED
        except (RequestError, ControlCallFailed, TimeoutError) as error:
            reason = lease.lost.result() if lease.lost.done() else error
            if isinstance(reason, EngineError | ShuttingDown):
                raise reason from None
            if isinstance(reason, ControlCallFailed) and is_refusal(reason):
                log.warning("started, and answers no such question", model=model, reason=str(reason))
                return
            if isinstance(reason, ControlCallFailed) and not lease.was_frozen:
                raise
            log.warning("started, but not asked: others needed the GPU", model=model, reason=str(reason))
        finally:
            self._access.cancel(lease.request)
            self._access.end(lease.request, outcome)


class _Lease:
    """The holder of the warm-up's own request for one model."""

    def __init__(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        self.request = request
        self.granted: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[RequestError] = loop.create_future()
        self.was_frozen = False

    def admitted(self, upstream: Upstream) -> None:
        self.granted.set_result(None)

    def rejected(self, error: RequestError) -> None:
        self.granted.set_exception(error)

    def revoked(self, error: RequestError) -> None:
        self.lost.set_result(error)

    def frozen(self) -> None:
        self.was_frozen = True

    def held(self) -> None:
        pass

    def thawed(self) -> None:
        pass

    def progress(self) -> None:
        """Unknown: the question is not asked through the gateway. It has a time limit of its own."""
