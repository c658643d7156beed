"""The access log: one JSON line per inference request. ``llmux simulate`` and ``llmux replay`` read it as a trace."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger("llmux.access_log")

BATCH_LINES_MAX = 1000
"""Lines are collected and written by the gateway's periodic sweep; at this number they are written without it."""


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
    """Appends lines to a file in batches. While it cannot be written, lines are lost and one warning is logged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[bytes] = []
        self._is_broken = False

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
        """Write the lines collected so far."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        try:
            # Opened for every batch, so that a rotated file needs no signal to llmux.
            with open(self._path, "ab", opener=_open_without_blocking) as file:
                file.write(b"".join(lines))
        except OSError as error:
            if not self._is_broken:
                log.warning("the access log cannot be written", file=str(self._path), reason=str(error))
            self._is_broken = True
        else:
            self._is_broken = False


def _open_without_blocking(path: str, flags: int) -> int:
    # Opening a named pipe that has no reader would block the event loop.
    return os.open(path, flags | os.O_NONBLOCK, 0o640)
