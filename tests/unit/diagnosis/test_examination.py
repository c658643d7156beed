"""A check that hangs or fails is said to be unknown, and takes nothing else with it."""

from collections.abc import Iterator
from threading import Event

import pytest

from llmux.diagnosis.examination import look
from llmux.diagnosis.findings import Finding, Level, ok


def test_a_check_that_hangs_is_left_behind() -> None:
    released = Event()

    def hangs() -> Iterator[Finding]:
        yield ok("first", "seen")
        released.wait()

    try:
        first, rest = look("GPUs", hangs, limit_seconds=0.05)
    finally:
        released.set()
    assert first.what == "first"
    assert rest.level is Level.UNKNOWN and rest.what == "GPUs" and "longer than 0.05 s" in rest.found


def test_a_check_that_the_system_refuses_is_unknown() -> None:
    def refused() -> Iterator[Finding]:
        yield ok("first", "seen")
        raise PermissionError(13, "Permission denied", "/secret")

    first, rest = look("directories", refused)
    assert first.level is Level.OK
    assert rest.level is Level.UNKNOWN and "/secret" in rest.found


def test_mistakes_in_a_check_are_not_hidden() -> None:
    def wrong() -> Iterator[Finding]:
        yield ok(*{}["a mistake"])

    with pytest.raises(KeyError, match="a mistake"):
        look("engines", wrong)
