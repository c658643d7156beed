"""When the first token of a stream has come, where the first events only say that an answer is under way.

``/v1/responses`` and ``/v1/messages`` begin so, before the prefill is over.
"""

import re

from llmux.gateway.http.chunks import ChunkReader

_NO_OUTPUT = frozenset(
    b"""
    response.created response.queued response.in_progress response.output_item.added response.content_part.added
    response.reasoning_part.added response.reasoning_summary_part.added response.completed response.incomplete
    response.failed message_start content_block_start message_delta message_stop ping error
    """.split()
)
"""The events that announce output, and those that end an answer."""
_TYPE = re.compile(rb'"type"\s*:\s*"([a-z_.]+)"')
_KEPT_LINE_BYTES = 64 * 1024
"""``response.created`` repeats the request's instructions, and may be of any size."""


class OutputFinder:
    """Reads the beginning of one event stream, up to the first event that carries output."""

    __slots__ = ("_chunks", "_event", "_line")

    def __init__(self, *, is_chunked: bool) -> None:
        self._chunks = ChunkReader(collect=True) if is_chunked else None
        self._line = b""
        """The beginning of a line that is not complete."""
        self._event = b""
        """The name of the current event; some engines give none, and the type in the data says the same."""

    def find(self, data: bytes) -> bool:
        """Read on; returns whether output has come. A chunked body must have been found well-formed."""
        if self._chunks is not None:
            self._chunks.feed(data)
            data = self._chunks.take_payload()
        *lines, line = (self._line + data).split(b"\n")
        if len(line) > 2 * _KEPT_LINE_BYTES:
            line = line[:8] + line[-_KEPT_LINE_BYTES:]  # What field it is, and the type, which stands last.
        self._line = line
        return any(map(self._is_output, lines))

    def _is_output(self, line: bytes) -> bool:
        line = line.rstrip(b"\r")
        if not line:
            self._event = b""
        elif line.startswith(b"event:"):
            self._event = line[6:].strip()
        elif line.startswith(b"data:"):
            return _NO_OUTPUT.isdisjoint([self._event] if self._event else _TYPE.findall(line))
        return False
