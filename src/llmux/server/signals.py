"""Signals to a server: some stop it, the others are logged, and none of them kills it."""

import asyncio
import signal
from collections.abc import Callable
from types import FrameType

import structlog

log = structlog.get_logger("llmux")

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
REMARKS = {
    signal.SIGHUP: "the configuration stays as it is: restart llmux to apply changes",
    signal.SIGUSR1: "this signal means nothing to llmux",
    signal.SIGUSR2: "this signal means nothing to llmux",
}
SIGNALS = (*STOPPING, *REMARKS)


class SignalReceiver:
    """Has the signals of this process handled on the event loop, until ``close``; after that they do nothing.

    Not ``loop.add_signal_handler``: taking such a handler away again makes the signal deadly for a moment, in which one
    that came a second time would break the end of a shutdown.
    """

    def __init__(self, stop: Callable[[signal.Signals], None]) -> None:
        """``stop`` is called on the event loop. To be constructed in the main thread, with the loop running."""
        self._stop = stop
        self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        for number in SIGNALS:
            # A closed terminal is nothing to a program that was started with nohup.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def close(self) -> None:
        """Ignore every signal from now on."""
        self._loop = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._handle, signal.Signals(number))

    def _handle(self, received: signal.Signals) -> None:
        if received in REMARKS:
            log.warning(REMARKS[received], signal=received.name)
        else:
            self._stop(received)
