"""A virtual GPU: one locked JSON file in which simulated engines claim and release memory.

A claim that does not fit is refused, so an orchestrator that double-books the GPU is found out without one.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LOCK_TIMEOUT_SECONDS = 10.0
REFUSALS_KEPT = 200
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
ROUNDING_TICKS = 1


class LedgerError(Exception):
    """The ledger cannot be used: missing, damaged, or locked for too long."""


class LedgerFull(Exception):
    """The claim does not fit beside the others."""

    def __init__(self, wanted_mib: int, free_mib: int, capacity_mib: int) -> None:
        self.wanted_mib = wanted_mib
        self.free_mib = free_mib
        self.capacity_mib = capacity_mib
        super().__init__(f"{wanted_mib} MiB wanted, {free_mib} of {capacity_mib} MiB free")


@dataclass(frozen=True, slots=True)
class Claim:
    """What one living process holds; ``started`` tells a process from a later one with the same pid."""

    pid: int
    model: str
    mib: int
    started: int
    at: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """One attempt to take more than was free: proof that somebody double-booked the GPU."""

    pid: int
    model: str
    wanted_mib: int
    free_mib: int
    at: float


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """The virtual GPU at one moment; claims of dead processes are not in it."""

    capacity_mib: int
    used_mib: int
    peak_mib: int
    refused: tuple[Refusal, ...]
    claims: tuple[Claim, ...]

    @property
    def free_mib(self) -> int:
        """What could be claimed now."""
        return self.capacity_mib - self.used_mib


@dataclass(slots=True)
class _Book:
    capacity_mib: int
    peak_mib: int = 0
    claims: dict[int, Claim] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)

    @property
    def used_mib(self) -> int:
        return sum(claim.mib for claim in self.claims.values())

    @classmethod
    def decode(cls, document: dict[str, Any]) -> "_Book":
        claims = [Claim(**claim) for claim in document["claims"]]
        living = {claim.pid: claim for claim in claims if _is_same(process_started(claim.pid), claim.started)}
        refused = [Refusal(**refusal) for refusal in document["refused"]]
        return cls(document["capacity_mib"], document["peak_mib"], living, refused)

    def encode(self) -> str:
        claims = [asdict(claim) for claim in self.claims.values()]
        refused = [asdict(refusal) for refusal in self.refused[-REFUSALS_KEPT:]]
        document = {"capacity_mib": self.capacity_mib, "peak_mib": self.peak_mib, "claims": claims, "refused": refused}
        return json.dumps(document, indent=1)


class Ledger:
    """The virtual GPU's book; every method is one short critical section across all processes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def create(self, capacity_mib: int) -> "Ledger":
        """Make (or reset) the file of a GPU with so much memory."""
        with self._locked(os.O_RDWR | os.O_CREAT) as descriptor:
            _write(descriptor, _Book(capacity_mib))
        return self

    def claim(self, pid: int, mib: int, model: str = "") -> None:
        """Set what ``pid`` holds, whatever it held before; raises LedgerFull, and then nothing has changed."""
        with self._locked(os.O_RDWR) as descriptor:
            book = _read(descriptor, self.path)
            before = book.claims.get(pid)
            name = model or (before.model if before else "")
            free_mib = book.capacity_mib - book.used_mib + (before.mib if before else 0)
            fits = mib <= free_mib or (before is not None and mib <= before.mib)
            if fits:
                book.claims[pid] = Claim(pid, name, mib, process_started(pid) or 0, time.time())
                book.peak_mib = max(book.peak_mib, book.used_mib)
            else:
                book.refused.append(Refusal(pid, name, mib, free_mib, time.time()))
            _write(descriptor, book)
        if not fits:
            raise LedgerFull(mib, free_mib, book.capacity_mib)

    def resize(self, pid: int, mib: int) -> None:
        """As ``claim``, under the model name given before."""
        self.claim(pid, mib)

    def release(self, pid: int) -> None:
        """Drop what ``pid`` holds; nothing happens if it holds nothing."""
        with self._locked(os.O_RDWR) as descriptor:
            book = _read(descriptor, self.path)
            book.claims.pop(pid, None)
            _write(descriptor, book)

    def snapshot(self) -> LedgerSnapshot:
        """Read the book; claims of processes that have died (zombies too) are gone from it."""
        with self._locked(os.O_RDWR) as descriptor:
            book = _read(descriptor, self.path)
        claims = tuple(book.claims.values())
        return LedgerSnapshot(book.capacity_mib, book.used_mib, book.peak_mib, tuple(book.refused), claims)

    @contextlib.contextmanager
    def _locked(self, flags: int) -> Iterator[int]:
        try:
            descriptor = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            remedy = "create it with Ledger(path).create(capacity_mib)"
            raise LedgerError(f"the GPU ledger {self.path} cannot be opened ({error.strerror}): {remedy}") from error
        try:
            self._lock(descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LedgerError(f"the GPU ledger {self.path} is locked by another process") from None
                time.sleep(0.001)
            else:
                return


def process_started(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None for a dead one and for a zombie.

    criu puts what it restores into a time namespace of its own, in which all processes seem to have started at another
    time: what is returned is the time outside.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19]) - _namespace_ticks()


def _namespace_ticks() -> int:
    """By how much this process's time namespace is ahead of the machine."""
    try:
        _, seconds, nanoseconds = Path("/proc/self/timens_offsets").read_text().splitlines()[1].split()
    except (OSError, IndexError):
        return 0
    return round((int(seconds) + int(nanoseconds) / 1e9) * TICKS_PER_SECOND)


def _is_same(started: int | None, claimed: int) -> bool:
    return started is not None and abs(started - claimed) <= ROUNDING_TICKS


def _read(descriptor: int, path: Path) -> _Book:
    try:
        return _Book.decode(json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0)))
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{path} is not a GPU ledger: {error}") from error


def _write(descriptor: int, book: _Book) -> None:
    # One system call that also covers the old text: a writer that is killed cannot leave half a document.
    size = os.fstat(descriptor).st_size
    os.pwrite(descriptor, book.encode().encode().ljust(size), 0)
