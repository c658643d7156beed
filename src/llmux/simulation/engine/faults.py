"""What goes wrong on purpose, from the command line (``--sim-fault``) or through ``/control``."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path


class Fault(StrEnum):
    """The kinds of failure; in brackets what their argument means."""

    START_EXIT = "start-exit"
    """Ends during the start (exit code, 1)."""
    START_HANG = "start-hang"
    """Never listens."""
    DIE_ON_REQUEST = "die-on-request"
    """Starts well and dies at its first request (``engine`` or ``exit``)."""
    DIE_AFTER_TOKENS = "die-after-tokens"
    """Dies after so many tokens (their number, 1)."""
    SLEEP_500 = "sleep-500"
    """/sleep fails and leaves the scheduler paused (how many times; for ever)."""
    WAKE_500 = "wake-500"
    """/wake_up fails (how many times; for ever)."""
    WAKE_HANG = "wake-hang"
    """/wake_up never answers (how many times; for ever)."""
    WAKE_GARBAGE = "wake-garbage"
    """/wake_up answers 200, and the weights are not what they were (how many times; for ever)."""
    RELOAD_500 = "reload-500"
    """reload_weights fails before it has touched anything (how many times; for ever)."""
    IGNORE_SIGTERM = "ignore-sigterm"
    """Only SIGKILL ends it."""
    SIGTERM_HANGS = "sigterm-hangs"
    """With requests in flight, SIGTERM neither answers them nor ends the process until their clients leave."""


class Faults:
    """The faults that are switched on, with their arguments."""

    def __init__(self, specifications: Iterable[str] = ()) -> None:
        """Each specification is ``WHAT[:ARGUMENT][@PATH]``; with a path it counts only if that file exists now.

        Raises ValueError for an unknown fault or a wrong argument.
        """
        self._arguments: dict[Fault, str] = {}
        for specification in specifications:
            rest, _, condition = specification.partition("@")
            name, _, argument = rest.partition(":")
            fault = _fault(name)
            if argument and not _fits(fault, argument):
                raise ValueError(f"the argument {argument!r} does not fit the fault {fault}")
            if not condition or Path(condition).exists():
                self._arguments[fault] = argument

    def __contains__(self, fault: Fault) -> bool:
        return fault in self._arguments

    def active(self) -> Iterator[Fault]:
        """The faults that are switched on."""
        yield from self._arguments

    def argument(self, fault: Fault, default: str) -> str:
        """The fault's argument, or ``default`` where it has none."""
        return self._arguments.get(fault) or default

    def switch(self, fault: Fault, enabled: bool, argument: str = "") -> None:
        """Turn a fault on or off."""
        if enabled:
            self._arguments[fault] = argument
        else:
            self._arguments.pop(fault, None)

    def strikes(self, fault: Fault) -> bool:
        """Whether the fault happens now; one with a number uses it up."""
        if fault not in self._arguments:
            return False
        if left := self._arguments[fault]:
            self.switch(fault, int(left) > 1, str(int(left) - 1))
        return True


def _fault(name: str) -> Fault:
    try:
        return Fault(name)
    except ValueError:
        raise ValueError(f"unknown fault {name!r}; known: {', '.join(Fault)}") from None


def _fits(fault: Fault, argument: str) -> bool:
    if fault is Fault.DIE_ON_REQUEST:
        return argument in ("engine", "exit")
    return argument.isdecimal() and (fault is Fault.START_EXIT or int(argument) > 0)
