"""A server that runs already, somewhere: it takes no memory of our GPUs, and llmux neither starts nor ends it."""

from dataclasses import dataclass
from typing import ClassVar

from llmux.core.eviction import Eviction, Process, Weights
from llmux.engines.calls import Endpoints
from llmux.engines.questions import Question
from llmux.engines.without_process import EngineWithoutProcess
from llmux.errors import ControlCallFailed

DEFAULT_READY_PATH = "/v1/models"


@dataclass(frozen=True, slots=True)
class Remote(EngineWithoutProcess):
    """Serves beside whatever is on the GPU; to wake it is to ask whether it is there."""

    kind: ClassVar[str] = "remote"
    default_eviction: ClassVar[Eviction | None] = Eviction(Weights.RETAIN, Process.KEEP_RUNNING)
    uses_gpu: ClassVar[bool] = False
    own_keys: ClassVar[frozenset[str]] = frozenset(("url", "api_key", "ready_path"))
    keys_without_use: ClassVar[frozenset[str]] = frozenset(("command", "extra_args", "checkpoint_path", "env", "port"))
    canary: ClassVar[Question | None] = None
    """Nothing of it leaves and comes back, and every question may cost money."""

    async def check(self, endpoints: Endpoints, timeout_seconds: float) -> None:
        """Ask whether it serves; raises ControlCallFailed.

        Without a ``ready_path`` any answer shows that, but for errors of the server's own and for those that every
        request would meet: a key that is not taken, a redirect to somewhere else.
        """
        options = self.options
        try:
            await endpoints.get(options.ready_path or DEFAULT_READY_PATH, timeout_seconds)
        except ControlCallFailed as failure:
            status = failure.status
            if options.ready_path or status is None or status >= 500 or status == 401 or 300 <= status < 400:
                raise
