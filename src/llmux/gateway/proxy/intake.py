"""What a client has sent and its connection has not worked off yet, and whose turn it is to work something off."""

from typing import Final, Protocol

from llmux.gateway.http.head_buffer import HeadBuffer
from llmux.gateway.proxy import turns
from llmux.gateway.proxy.flow_control import FlowControl, PauseReason
from llmux.gateway.proxy.inbox import Inbox
from llmux.gateway.proxy.receiving import ReceivedBody
from llmux.gateway.state import GatewayState

# Bound once, for speed: see the docstring of llmux.gateway.
_STEPS_PER_TURN: Final = turns.STEPS_PER_TURN


class Worker(Protocol):
    """The connection that takes what is in an intake. It is passed to each call: a reference would be a cycle."""

    def can_take_more(self) -> bool:
        """Whether it waits for the rest of a request or for the next one."""

    def take_some(self) -> None:
        """Take a head or a piece of a body, by ``Intake.take_head`` or ``Intake.take_body``."""

    def take_turn(self) -> None:
        """Go on in a later iteration of the event loop: call ``Intake.begin_turn`` and ``Intake.work_off``."""


class Intake:
    """Is worked off in steps of about a microsecond, so many at a time; meanwhile the client may not be read from."""

    __slots__ = ("_head_buffer", "_inbox", "_state", "_steps_left", "flow", "is_busy")

    def __init__(self, state: GatewayState) -> None:
        self._state = state
        self._head_buffer = HeadBuffer()
        self._inbox = Inbox()
        self._steps_left = _STEPS_PER_TURN
        self.flow = FlowControl()
        """When the client is read from."""
        self.is_busy = False
        """Whether something is being worked off: what is called for it must not begin with the next thing itself."""

    @property
    def pending_bytes(self) -> int:
        """How much has not been worked off."""
        return self._inbox.pending_bytes

    @property
    def has_part_of_head(self) -> bool:
        """Whether a head has begun and is not complete."""
        return self._head_buffer.pieces is not None

    def receive(self, data: bytes) -> bool:
        """Add what has been read from the client; returns whether it can be worked off now."""
        must_wait = self._inbox.pending_bytes
        self._inbox.add(data)
        if must_wait:
            self._limit()
        return not must_wait

    def work_off(self, worker: Worker) -> None:
        """Work off what there is until something must be waited for, be it the other connections' turn."""
        self.is_busy = True
        shared, steps_before = self._state.turns, self._steps_left
        while self._inbox.has_more() and worker.can_take_more():
            if self._steps_left <= 0 or shared.steps_left <= 0:
                self.flow.pause(PauseReason.OTHERS_TURN)
                shared.put_off(worker.take_turn)
                break
            worker.take_some()
        shared.spend(steps_before - self._steps_left)
        self.is_busy = False
        self._limit()

    def begin_turn(self) -> None:
        """The others have had their turn."""
        self.flow.resume(PauseReason.OTHERS_TURN)
        self.renew_budget()

    def renew_budget(self) -> bool:
        """The next steps are those of another turn. Returns whether there is anything to work off."""
        self._steps_left = _STEPS_PER_TURN
        inbox = self._inbox
        # As ``pending_bytes``, without its cost: this is asked after every answer.
        return inbox.position < len(inbox.data) or inbox.backlog is not None

    def spend(self, steps: int) -> None:
        """Count steps that what was taken has cost beside the taking."""
        self._steps_left -= steps

    def take_head(self, max_bytes: int) -> bytes:
        """The next head, if it is complete; raises FramingError or HeadTooLarge."""
        inbox = self._inbox
        pending_bytes = inbox.pending_bytes
        head, inbox.data, inbox.position = self._head_buffer.take(inbox.data, inbox.position, max_bytes)
        read_bytes = max(0, pending_bytes - inbox.pending_bytes)
        self._steps_left -= turns.STEPS_OF_A_PIECE + read_bytes // turns.HEAD_BYTES_PER_STEP
        return head

    def take_body(self, body: ReceivedBody) -> None:
        """Let ``body`` read on; raises as its ``read``."""
        self._steps_left -= body.read(self._inbox, self._steps_left)

    def clear(self) -> None:
        """Drop everything."""
        self._inbox.clear()
        self._head_buffer.clear()
        self._limit()

    def _limit(self) -> None:
        is_full = self._inbox.pending_bytes > self._state.options.max_pipelined_bytes
        self.flow.pause_while(is_full, PauseReason.BACKLOG_FULL)
