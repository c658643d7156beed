"""The access log: one JSON line for each request for a model. ``llmux simulate`` and ``llmux replay`` read it.

So does llmux itself at its start, where it predicts which model will be asked for: ``read_demands``.
"""

import os
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from llmux import os_errors
from llmux.core.prediction import Demand
from llmux.observability.background import CLOSE_SECONDS, BackgroundWriter, write_fully

log = structlog.get_logger("llmux.access_log")

BATCH_LINES_MAX = 1000
"""Lines are collected and handed to the thread by the gateway's periodic sweep; at this number without it."""
QUEUE_BYTES_MAX = 8 << 20
"""Some thirty thousand lines: a minute of a stalled file system at hundreds of requests a second."""
LINE_START = b'{"time":'
"""How every line begins, by which the beginning of one that broke off is recognised."""
LINE_BYTES_MAX = 1 << 16
"""No line is longer."""
TAIL_BYTES_MAX = 8 << 20
"""What is read of the log's end for its demands: some thirty thousand requests, in 50 ms."""


class FinishedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the access log records of a request. A msgspec struct, because one is made per request."""

    request_id: bytes
    model: str
    endpoint: str
    status: int
    request_bytes: int
    response_bytes: int
    is_stream: bool
    queue_seconds: float
    """From its arrival until it was admitted."""
    seconds: float
    """From the end of its head until the end of the response."""
    session: str | None = None
    """The client's name for the conversation, from ``x-session-id``; written only if there is one."""


class AccessLog:
    """Appends lines to a file, in a thread. While that cannot be written, lines are lost and one warning is logged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[bytes] = []
        self._is_broken = False
        self._writer = BackgroundWriter(
            "llmux-access-log", self._append, self._report_dropped, queue_bytes_max=QUEUE_BYTES_MAX
        )

    @property
    def lines_dropped(self) -> int:
        """How many lines could not be written."""
        return self._writer.lines_dropped

    def add(self, request: FinishedRequest) -> None:
        """Record a request that has ended just now."""
        arrived_at = datetime.fromtimestamp(time.time() - request.seconds, UTC)
        entry = {
            "time": arrived_at.isoformat(timespec="milliseconds"),
            "request_id": request.request_id.decode("latin-1"),
            "model": request.model,
            "endpoint": request.endpoint,
            "status": request.status,
            "queue_ms": round(request.queue_seconds * 1000),
            "duration_ms": round(request.seconds * 1000),
            "request_bytes": request.request_bytes,
            "response_bytes": request.response_bytes,
            "stream": request.is_stream,
        }
        if request.session is not None:
            entry["session"] = request.session
        self._lines.append(msgspec.json.encode(entry) + b"\n")
        if len(self._lines) >= BATCH_LINES_MAX:
            self.flush()

    def flush(self) -> None:
        """Hand the lines collected so far to the thread."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._writer.add(b"".join(lines))

    def close(self, limit_seconds: float = CLOSE_SECONDS) -> None:
        """Return when every line has been written, or at the limit. Blocks: not to be called on the event loop."""
        self.flush()
        self._writer.close(limit_seconds)

    # In the thread.

    def _append(self, lines: bytes) -> int:
        written = 0
        try:
            # Opened for every batch, so that a rotated file needs no signal to llmux. Without O_NONBLOCK a named pipe
            # without a reader would be waited for; it is an error instead, and said.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o640)
            try:
                self._mend(descriptor)
                written, error = write_fully(descriptor, lines)
            finally:
                os.close(descriptor)
        except OSError as failure:
            error = failure
        if error is not None and not self._is_broken:
            log.warning("the access log cannot be written", file=str(self._path), reason=os_errors.describe(error))
        self._is_broken = error is not None
        return written

    def _mend(self, descriptor: int) -> None:
        """Let the next line begin a line: one that broke off (a full disk, a crash) would spoil it, and the file."""
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            return
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, status.st_size - LINE_BYTES_MAX))
                _, _, broken = file.read().rpartition(b"\n")
        except OSError:
            return  # it may be written, but not read
        if broken.startswith(LINE_START):
            os.ftruncate(descriptor, status.st_size - len(broken))
        elif broken:
            os.write(descriptor, b"\n")

    def _report_dropped(self, lines: int) -> bytes:
        log.warning("lines of the access log were dropped", lines=lines, file=str(self._path))
        return b""


class _Line(msgspec.Struct, frozen=True):
    """What is read of a line."""

    time: datetime
    model: str
    queue_ms: int


def read_demands(path: Path, bytes_max: int = TAIL_BYTES_MAX) -> list[Demand]:
    """The demands that the end of a log tells of, in their order: requests that had to wait, mostly for their model.

    Lines that cannot be read are passed over; no demands if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - bytes_max))
            lines = file.read(bytes_max).splitlines()
    except OSError:
        return []
    demands = []
    decoder = msgspec.json.Decoder(_Line)
    for line in lines:
        try:
            found = decoder.decode(line)
        except msgspec.MsgspecError:
            continue
        if found.queue_ms:
            demands.append(Demand(found.model, found.time.timestamp()))
    # A line is written when its request has ended.
    return sorted(demands, key=lambda demand: demand.at)
