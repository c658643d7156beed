"""A connection is read from exactly while no reason to pause is in force."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from llmux.gateway.proxy.flow_control import FlowControl, PauseReason

REASONS = list(PauseReason)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("pause"), st.sampled_from(REASONS)),
        st.tuples(st.just("resume"), st.sampled_from(REASONS)),
        st.just(("clear", None)),
        st.just(("attach", None)),
        st.just(("close", None)),
    ),
    max_size=40,
)


class StrictTransport(asyncio.Transport):
    """Refuses what real transports refuse, and calls that change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = True
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert self.reads and not self.closing
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.reads and not self.closing
        self.reads = True


@given(EVENTS)
def test_reads_exactly_while_there_is_no_reason_to_pause(events: list[tuple[str, PauseReason | None]]) -> None:
    flow, transport, attached = FlowControl(), StrictTransport(), False
    expected: set[PauseReason] = set()
    for name, reason in events:
        match name:
            case "pause" if reason is not None:
                flow.pause(reason)
                expected.add(reason)
            case "resume" if reason is not None:
                flow.resume(reason)
                expected.discard(reason)
            case "clear":
                flow.clear()
                expected.clear()
            case "attach" if not attached and not transport.closing:
                flow.attach(transport)
                attached = True
            case "close" if attached:
                transport.closing = True
            case _:
                pass
        assert flow.reasons == expected
        if attached and not transport.closing:
            assert transport.reads is (not expected)


def test_lifting_one_of_two_reasons_does_not_resume_reading() -> None:
    flow, transport = FlowControl(), StrictTransport()
    flow.attach(transport)
    flow.pause(PauseReason.HELD_UNTIL_THAW)
    flow.pause(PauseReason.CLIENT_FULL)
    flow.resume(PauseReason.CLIENT_FULL)
    assert not transport.reads
    flow.resume(PauseReason.HELD_UNTIL_THAW)
    assert transport.reads
