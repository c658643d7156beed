"""When waiting requests time out."""

import math

import pytest

from llmux.core.deadlines import STALE_ENTRIES_MIN, Deadlines
from llmux.core.request import Request


def test_the_earliest_deadline_is_that_of_a_request_that_still_waits():
    deadlines = Deadlines()
    early, late = Request(1, "a"), Request(2, "a")
    deadlines.start(late, 9.0)
    deadlines.start(early, 5.0)
    assert deadlines.earliest(before=math.inf) == 5.0
    assert deadlines.earliest(before=5.0) == math.inf
    deadlines.stop(early)
    assert deadlines.earliest(before=math.inf) == 9.0


def test_expired_requests_come_out_by_their_deadlines_and_once():
    deadlines = Deadlines()
    requests = [Request(number, "a") for number in range(3)]
    for request, deadline in zip(requests, (7.0, 5.0, 20.0), strict=True):
        deadlines.start(request, deadline)
    expired = [deadlines.expired(10.0), deadlines.expired(10.0), deadlines.expired(10.0)]
    assert expired == [requests[1], requests[0], None]


def test_a_request_that_waits_again_has_its_new_deadline_only():
    deadlines = Deadlines()
    request = Request(1, "a")
    deadlines.start(request, 5.0)
    deadlines.stop(request)
    deadlines.start(request, 8.0)
    assert deadlines.expired(6.0) is None
    assert deadlines.expired(8.0) is request


@pytest.mark.parametrize("deadline", [100.0, math.inf])
def test_requests_that_have_stopped_waiting_are_forgotten(deadline: float):
    deadlines = Deadlines()
    for number in range(5 * STALE_ENTRIES_MIN):
        request = Request(number, "a")
        deadlines.start(request, deadline)
        deadlines.stop(request)
    assert len(deadlines) <= STALE_ENTRIES_MIN + 2
