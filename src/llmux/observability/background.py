"""Writing in a thread: a file, pipe or terminal that takes nothing for a while must not stop the event loop."""

import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

QUEUE_BYTES_MAX = 1 << 20
"""Some thousand lines: a reader may pause for minutes of ordinary operation before anything is lost."""
PARTIAL_LINE_CHARACTERS_MAX = 1 << 16
NOTICE_INTERVAL_SECONDS = 1.0
"""Between two notices of dropped lines, where lines keep being dropped for another reason than a full queue."""
CLOSE_SECONDS = 2.0
"""For the last lines to be written at the end of the process; what is not read by then never will be."""


class BackgroundWriter:
    """Passes whole lines to ``write`` in a thread of its own, in order.

    Lines that find the queue full are dropped until all that was queued has been taken, and counted. ``write`` may
    block; it returns how many of the bytes it has written, and the lines in the rest count as dropped.
    ``on_dropped`` is called in the thread as soon as lines flow again; what it returns is written too.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[bytes], int],
        on_dropped: Callable[[int], bytes],
        *,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
    ) -> None:
        self.lines_dropped = 0
        """In all."""
        self._write = write
        self._on_dropped = on_dropped
        self._queue_bytes_max = queue_bytes_max
        self._queue: list[bytes] = []
        self._queue_bytes = 0
        self._is_full = False
        """Whether a line has found the queue full since it was last taken."""
        self._unreported = 0
        """Dropped lines of which ``on_dropped`` has not told yet."""
        self._noticed_at = float("-inf")
        self._is_closing = False
        # Re-entrant: the garbage collector may run a finalizer that logs while this thread holds it.
        self._changed = threading.Condition(threading.RLock())
        # A daemon: a write that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_started = False

    def add(self, lines: bytes) -> None:
        """Queue whole lines. Never blocks."""
        with self._changed:
            if self._is_closing or self._is_full or self._queue_bytes + len(lines) > self._queue_bytes_max:
                self._is_full = True
                self._drop(lines.count(b"\n"))
                return
            self._queue.append(lines)
            self._queue_bytes += len(lines)
            self._wake()

    def drop(self, lines: int) -> None:
        """Count lines that the caller has dropped itself."""
        with self._changed:
            is_first = not self._unreported
            self._drop(lines)
            if is_first:
                self._wake()

    def close(self, limit_seconds: float = CLOSE_SECONDS) -> bool:
        """Return when everything queued has been written, or at the limit; returns which. Further lines are dropped."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
            if not self._is_started:
                return True
        self._thread.join(limit_seconds)
        return not self._thread.is_alive()

    def _drop(self, lines: int) -> None:
        self.lines_dropped += lines
        self._unreported += lines

    def _wake(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._thread.start()
        self._changed.notify()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            lines, unreported = taken
            written = self._write(lines)
            failed = written < len(lines)
            if unreported and not failed:
                notice = self._on_dropped(unreported)
                failed = self._write(notice) < len(notice)
                unreported = unreported if failed else 0
            with self._changed:
                self._unreported += unreported
                if written < len(lines):
                    self._drop(lines.count(b"\n", written))
                if failed and self._is_closing:
                    return
                if failed:
                    # The next lines are the next try: a notice alone would only fail again.
                    self._changed.wait_for(lambda: self._queue or self._is_closing)

    def _take(self) -> tuple[bytes, int] | None:
        """Wait for lines, or for a notice of dropped ones to be due; None at the end, when all is written."""
        with self._changed:
            while not self._queue and not self._is_closing and not self._is_notice_due():
                wait_seconds = self._noticed_at + NOTICE_INTERVAL_SECONDS - time.monotonic()
                self._changed.wait(wait_seconds if self._unreported else None)
            unreported = 0
            if self._is_notice_due() or self._is_closing:
                unreported, self._unreported = self._unreported, 0
                self._noticed_at = time.monotonic()
            if not self._queue and not unreported:
                return None
            lines = b"".join(self._queue)
            self._queue, self._queue_bytes, self._is_full = [], 0, False
            return lines, unreported

    def _is_notice_due(self) -> bool:
        return bool(self._unreported) and (
            self._is_full or time.monotonic() - self._noticed_at >= NOTICE_INTERVAL_SECONDS
        )


def write_fully(descriptor: int, data: bytes) -> tuple[int, OSError | None]:
    """Write everything, waiting as long as it takes, unless an error occurs; returns what was written and the error."""
    written = 0
    while written < len(data):
        try:
            written += os.write(descriptor, memoryview(data)[written:])
        except BlockingIOError:
            # Whoever shares the descriptor has made it non-blocking.
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
        except OSError as error:
            return written, error
    return written, None


class BackgroundStream(io.TextIOBase):
    """A text stream over a descriptor whose writes never block: they go to a ``BackgroundWriter`` line by line."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._partial = ""
        self._is_torn = False
        """Whether the last line that reached the descriptor is incomplete."""
        self._lock = threading.RLock()
        self.writer = BackgroundWriter("llmux-stderr", self._write_lines, _describe_dropped)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        with self._lock:
            self._partial += text
            complete, newline, self._partial = self._partial.rpartition("\n")
            if len(self._partial) > PARTIAL_LINE_CHARACTERS_MAX:
                complete, newline, self._partial = complete + newline + self._partial, "\n", ""
            if newline:
                self.writer.add((complete + newline).encode(self.encoding, self.errors))
        return len(text)

    def finish(self) -> None:
        """Write what is left, as far as it can be written in a moment, and stop."""
        with self._lock:
            if self._partial:
                self.write("\n")
        self.writer.close()

    def _write_lines(self, lines: bytes) -> int:
        if self._is_torn:
            _, error = write_fully(self._descriptor, b"\n")
            if error is not None:
                return 0
        written, error = write_fully(self._descriptor, lines)
        self._is_torn = error is not None and (lines[written - 1 : written] != b"\n" if written else self._is_torn)
        return written


_stream: BackgroundStream | None = None


def log_lines_dropped() -> int:
    """How many lines for standard error were dropped since the start of the process."""
    return 0 if _stream is None else _stream.writer.lines_dropped


def drop_log_line() -> None:
    """Count a line that was dropped before it was written."""
    if _stream is not None:
        _stream.writer.drop(1)


@contextmanager
def stderr_in_background() -> Iterator[None]:
    """Let a thread write all that Python writes to standard error: logs, warnings, tracebacks, messages."""
    global _stream
    replaced = sys.stderr
    replaced.flush()
    sys.stderr = _stream = BackgroundStream(replaced.fileno())
    try:
        yield
    finally:
        sys.stderr = replaced
        _stream.finish()


def _describe_dropped(lines: int) -> bytes:
    moment = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    what = "1 log line was dropped" if lines == 1 else f"{lines} log lines were dropped"
    return f"{moment} [warning  ] {what}: standard error did not take them in time [llmux.logging]\n".encode()
