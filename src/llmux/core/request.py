"""One client's request: the record that the gateway makes and that everything behind it carries."""

from enum import StrEnum

from llmux.core.identifiers import InstanceId, Seconds


class Priority(StrEnum):
    """The class of a request: interactive ones are admitted first."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Request:
    """A request, from its arrival at the gateway to its end. Compared by identity.

    The first block is the client's and never changes. The second is the scheduler's: only the core writes it.
    """

    __slots__ = (
        "arrived_at",
        "attempts",
        "deadline",
        "forecast_seconds",
        "id",
        "instance",
        "keep_alive_seconds",
        "may_wake",
        "model",
        "paused_seconds",
        "priority",
        "queue_seconds",
        "session",
        "size_bytes",
        "streams",
        "switch_seconds",
        "timeout_seconds",
        "ttft_seconds",
        "waiting_since",
    )

    def __init__(
        self,
        id: int,
        model: str,
        priority: Priority = Priority.INTERACTIVE,
        streams: bool = False,
        may_wake: bool = True,
        size_bytes: int = 0,
        session: str | None = None,
        keep_alive_seconds: Seconds | None = None,
        timeout_seconds: Seconds | None = None,
    ) -> None:
        self.id = id
        """Unique within the process, and growing: breaks ties between requests of the same time."""
        self.model = model
        self.priority = priority
        self.streams = streams
        """Whether the answer comes in pieces, so that its first token can be told from its end."""
        self.may_wake = may_wake
        """False: served only if the model is serving right now, else refused."""
        self.size_bytes = size_bytes
        """What the request holds in memory while it waits; counts against ``queue_limit_bytes``."""
        self.session = session
        """The client's name for the conversation that the request belongs to, if it sent one."""
        self.keep_alive_seconds = keep_alive_seconds
        """How long the model is to stay on the GPU when it is idle; infinity: until its place is needed; None: as the
        model would anyway."""
        self.timeout_seconds = timeout_seconds
        """How long it may be queued or frozen; None: as ``Limits`` says."""

        self.arrived_at: Seconds = 0.0
        """When it reached the scheduler first. Orders the queue, also after a return."""
        self.waiting_since: Seconds = 0.0
        """Since when it has been queued or frozen without a break; of a request in flight, the last such time."""
        self.deadline: Seconds | None = None
        """When it will have been queued or frozen for too long; None while it is neither."""
        self.attempts = 0
        """How often it has been admitted to an engine."""
        self.instance: InstanceId | None = None
        """The engine that it was admitted to last."""
        self.queue_seconds: Seconds = 0.0
        """From its arrival to its last admission."""
        self.forecast_seconds: Seconds | None = None
        """For how long it was expected to be queued when it came; None if nobody could tell, or it was not queued."""
        self.switch_seconds: Seconds | None = None
        """How long the switch took that it waited for; None if it waited for none."""
        self.ttft_seconds: Seconds | None = None
        """From its arrival to its first token; None before, and where the answer does not stream."""
        self.paused_seconds: Seconds = 0.0
        """For how long in all it has been frozen after its first token."""

    def __repr__(self) -> str:
        return f"Request({self.id}, {self.model!r})"
