"""The access log: one line of JSON for each inference request, written by the batch; ``llmux simulate`` reads it."""

import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger("llmux.access_log")

BATCH_LINES_MAX = 1000
"""So many are written at once, if the sweep has not written them before."""


class AccessLog:
    """Collects lines and appends them to a file; a file that cannot be written is told of once, and loses lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[bytes] = []
        self._is_broken = False

    def add(
        self,
        *,
        request_id: bytes,
        model: str,
        endpoint: str,
        status: int,
        request_bytes: int,
        response_bytes: int,
        is_stream: bool,
        queue_seconds: float,
        seconds: float,
    ) -> None:
        """Note a request that has just ended, ``seconds`` after its head had come."""
        arrived_at = datetime.fromtimestamp(time.time() - seconds, UTC)
        entry = {
            "time": arrived_at.isoformat(timespec="milliseconds"),
            "request_id": request_id.decode("latin-1"),
            "model": model,
            "endpoint": endpoint,
            "status": status,
            "queue_ms": round(queue_seconds * 1000),
            "duration_ms": round(seconds * 1000),
            "request_bytes": request_bytes,
            "response_bytes": response_bytes,
            "stream": is_stream,
        }
        self._lines.append(msgspec.json.encode(entry) + b"\n")
        if len(self._lines) >= BATCH_LINES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what has been noted."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        try:
            # Opened anew each time, so that whoever rotates logs need not tell us.
            with self._path.open("ab") as file:
                file.write(b"".join(lines))
        except OSError as error:
            if not self._is_broken:
                log.warning("the access log cannot be written", file=str(self._path), reason=str(error))
            self._is_broken = True
        else:
            self._is_broken = False
