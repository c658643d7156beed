"""Injected faults, from the command line (``--sim-fault``) or through ``/control``."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path


class Fault(StrEnum):
    """What can fail; the argument's meaning and default are in brackets."""

    START_EXIT = "start-exit"
    """The process exits during the start (exit code, 1)."""
    START_HANG = "start-hang"
    """The engine never listens."""
    DIE_ON_REQUEST = "die-on-request"
    """The engine starts well and dies at its first request (``engine`` core or whole process: ``exit``)."""
    DIE_AFTER_TOKENS = "die-after-tokens"
    """The engine dies after a number of tokens (1)."""
    SLEEP_500 = "sleep-500"
    """/sleep fails and leaves the scheduler paused (number of times; always)."""
    OLD_SLEEP = "old-sleep"
    """It is of a version that cannot release its KV cache alone."""
    WAKE_500 = "wake-500"
    """/wake_up fails (number of times; always)."""
    WAKE_HANG = "wake-hang"
    """/wake_up never responds (number of times; always)."""
    WAKE_GARBAGE = "wake-garbage"
    """/wake_up responds 200 but the weights are corrupt (number of times; always)."""
    RELOAD_500 = "reload-500"
    """reload_weights fails without any effect (number of times; always)."""
    PREPARE_500 = "prepare-500"
    """checkpoint_prepare fails (number of times; always)."""
    IGNORE_SIGTERM = "ignore-sigterm"
    """Only SIGKILL ends the process."""
    SIGTERM_HANGS = "sigterm-hangs"
    """With requests in flight, SIGTERM has no effect until their clients disconnect."""


class Faults:
    """The active faults with their arguments."""

    def __init__(self, specifications: Iterable[str] = ()) -> None:
        """Each specification is ``FAULT[:ARGUMENT][@PATH]``; with a path it applies only if that file exists now.

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
        yield from self._arguments

    def argument(self, fault: Fault, default: str) -> str:
        """The fault's argument, or ``default`` if it has none."""
        return self._arguments.get(fault) or default

    def switch(self, fault: Fault, enabled: bool, argument: str = "") -> None:
        if enabled:
            self._arguments[fault] = argument
        else:
            self._arguments.pop(fault, None)

    def strikes(self, fault: Fault) -> bool:
        """Whether the fault happens now; decrements the number of times, if it has one."""
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
