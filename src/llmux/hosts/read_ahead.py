"""Reading files into the page cache in the background, so that their engine need not wait for the disk.

Piece by piece, in their order: that waits for the disk instead of flooding its queue, and can be given up between two
pieces. A piece is mapped and populated, which copies nothing, so that what serves keeps the processor; where that is
not possible it is read into memory. ``posix_fadvise(WILLNEED)`` reads at most one read-ahead window a call, and returns
before anything is read. What each of them costs: bench/prefetch.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import psutil

from llmux.hosts import page_cache
from llmux.hosts.local import available_mib

PIECE_BYTES = 2 << 20
"""Read at once; at 100 MB/s, stopping takes 20 ms."""
BYTES_BETWEEN_LOOKS = 64 << 20
"""How much is read between two looks at the available memory."""
STRETCH_BYTES = 1 << 30
"""Of a file; after each it is checked whether what was read has stayed. A multiple of the pages' and pieces' sizes."""
LEAST_SHARE_KEPT = 0.75
"""If less of what was read of a file is in the page cache, memory is too short for it, or the file system has no page
cache: reading on would only cost."""


class ReadEnd(StrEnum):
    """Why reading ahead ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    ENOUGH = "enough"
    """``bytes_max`` are in the page cache."""
    LOW_MEMORY = "low_memory"
    NOT_KEPT = "not_kept"
    """What was read did not stay in the page cache."""


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What reading ahead may cost."""

    bytes_per_second: float
    bytes_max: int
    """Of the files' beginning, whether they have to be read or are in the page cache already."""
    available_min_mib: int
    """Host memory that must stay available."""


class ReadAhead:
    """One run over some files. ``done_bytes`` to ``read_seconds`` are written by its thread and read by any."""

    def __init__(
        self,
        files: Sequence[Path],
        limits: ReadLimits,
        *,
        read_available_mib: Callable[[], int] = available_mib,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = files
        self._limits = limits
        self._available_mib = read_available_mib
        self._clock = clock
        self._stop = threading.Event()
        self._can_populate = True
        self._next_at = 0.0
        """When the rate allows the next piece."""
        self._looked_at_bytes = -BYTES_BETWEEN_LOOKS
        self.total_bytes = sum(map(_size_of, files))
        self.done_bytes = 0
        """Read, or found in the page cache."""
        self.read_bytes = 0
        """From the disk."""
        self.read_seconds = 0.0
        """How long the disk took for them."""

    def stop(self) -> None:
        """End the run after the piece that is being read."""
        self._stop.set()

    def start(self) -> asyncio.Future[ReadEnd]:
        """Read in a thread of its own; the future is the running loop's, and cancelling it stops nothing.

        The thread is a daemon: a disk that never answers, as of a network, must not keep the process from ending.
        Raises RuntimeError if no thread can be started.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[ReadEnd] = loop.create_future()

        def tell(set_outcome: Callable[[], None]) -> None:
            if not ended.done():
                set_outcome()

        def work() -> None:
            _let_others_read_first()
            try:
                outcome = partial(ended.set_result, self.read())
            except Exception as failure:
                outcome = partial(ended.set_exception, failure)
            with suppress(RuntimeError):  # The loop has been closed meanwhile.
                loop.call_soon_threadsafe(tell, outcome)

        threading.Thread(target=work, name="llmux-read-ahead", daemon=True).start()
        return ended

    def read(self) -> ReadEnd:
        """Read the files in their order. Blocks. A file that cannot be read is passed over."""
        for file in self._files:
            try:
                descriptor = os.open(file, os.O_RDONLY)
            except OSError:
                continue
            try:
                end = self._read_file(descriptor)
            except OSError:
                continue  # Its engine will say what is wrong with it.
            finally:
                os.close(descriptor)
            if end is not None:
                return end
        return ReadEnd.COMPLETE

    def _read_file(self, descriptor: int) -> ReadEnd | None:
        """Why reading must end, if it must."""
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        size = os.fstat(descriptor).st_size
        for begin in range(0, size, STRETCH_BYTES):
            if (end := self._read_stretch(descriptor, begin, min(begin + STRETCH_BYTES, size))) is not None:
                return end
        return None

    def _read_stretch(self, descriptor: int, begin: int, end: int) -> ReadEnd | None:
        # Asked before anything is read, because the kernel reads further than it is told to.
        pieces = list(_pieces(descriptor, begin, end))
        for offset, length, missing_bytes in pieces:
            if (reason := self._reason_to_end(length)) is not None:
                return reason
            if missing_bytes:
                self._read_piece(descriptor, offset, length, missing_bytes)
            self.done_bytes += length
        if not any(missing_bytes for _, _, missing_bytes in pieces):
            return None
        kept_bytes = page_cache.cached_bytes(descriptor, 0, end)
        return ReadEnd.NOT_KEPT if kept_bytes is not None and kept_bytes < LEAST_SHARE_KEPT * end else None

    def _reason_to_end(self, next_bytes: int) -> ReadEnd | None:
        if self._stop.is_set():
            return ReadEnd.STOPPED
        if self.done_bytes + next_bytes > self._limits.bytes_max:
            return ReadEnd.ENOUGH
        if self.read_bytes - self._looked_at_bytes >= BYTES_BETWEEN_LOOKS:
            self._looked_at_bytes = self.read_bytes
            if self._available_mib() < self._limits.available_min_mib:
                return ReadEnd.LOW_MEMORY
        return None

    def _read_piece(self, descriptor: int, offset: int, length: int, missing_bytes: int) -> None:
        began_at = self._clock()
        self._can_populate = self._can_populate and page_cache.populate(descriptor, offset, length)
        if not self._can_populate:
            os.pread(descriptor, length, offset)
        ended_at = self._clock()
        self.read_bytes += missing_bytes
        self.read_seconds += ended_at - began_at
        # What a slow disk has not used of the rate is not made up for.
        self._next_at = max(self._next_at, began_at) + missing_bytes / self._limits.bytes_per_second
        if self._next_at > ended_at:
            self._stop.wait(self._next_at - ended_at)


def _let_others_read_first() -> None:
    """Give this thread idle I/O priority, which some of the kernel's I/O schedulers heed.

    Its CPU priority stays: it holds Python's lock at times, and the event loop must not wait for a thread that waits.
    """
    with suppress(psutil.Error, OSError):
        psutil.Process(threading.get_native_id()).ionice(psutil.IOPRIO_CLASS_IDLE)


def _pieces(descriptor: int, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Offset, length, and what of it is not in the page cache; all of it where that cannot be known."""
    for offset in range(begin, end, PIECE_BYTES):
        length = min(PIECE_BYTES, end - offset)
        yield offset, length, length - (page_cache.cached_bytes(descriptor, offset, length) or 0)


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
