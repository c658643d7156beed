"""A virtual GPU: one locked JSON file in which simulated engines allocate and release memory.

An allocation that does not fit is refused and recorded, so an orchestrator that double-books the GPU is found out
without one.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmux.core.identifiers import VISIBLE_GPUS

LOCK_TIMEOUT_SECONDS = 10.0
REFUSALS_KEPT = 200
"""Keeps the file small when an engine retries for ever; the first refusal already proves the fault."""
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
ROUNDING_TICKS = 1
"""Offsets of time namespaces are rounded to ticks, so a start time read from another one may be off by one."""


class LedgerError(Exception):
    """The ledger cannot be used: missing, damaged, or locked for too long."""


class LedgerFull(Exception):
    """The allocation does not fit beside the others."""

    def __init__(self, wanted_mib: int, free_mib: int, capacity_mib: int) -> None:
        self.wanted_mib = wanted_mib
        self.free_mib = free_mib
        self.capacity_mib = capacity_mib
        super().__init__(f"{wanted_mib} MiB wanted, {free_mib} of {capacity_mib} MiB free")


@dataclass(frozen=True, slots=True)
class Allocation:
    """The memory of one living process; ``started``, in ticks since boot, detects a later process with the same pid."""

    pid: int
    model: str
    mib: int
    started: int
    at: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """An attempt to allocate more than was free: proof that the GPU was double-booked."""

    pid: int
    model: str
    wanted_mib: int
    free_mib: int
    at: float


@dataclass(slots=True)
class LedgerSnapshot:
    """The virtual GPU at one moment, without the allocations of dead processes."""

    capacity_mib: int
    peak_mib: int = 0
    refused: tuple[Refusal, ...] = ()
    allocations: tuple[Allocation, ...] = ()

    @property
    def used_mib(self) -> int:
        return sum(allocation.mib for allocation in self.allocations)

    @property
    def free_mib(self) -> int:
        return self.capacity_mib - self.used_mib

    @classmethod
    def decode(cls, document: dict[str, Any]) -> "LedgerSnapshot":
        """Read the file's document; raises KeyError or TypeError for another one."""
        allocations = [Allocation(**allocation) for allocation in document["allocations"]]
        living = tuple(one for one in allocations if _is_same(process_started(one.pid), one.started))
        refused = tuple(Refusal(**refusal) for refusal in document["refused"])
        return cls(document["capacity_mib"], document["peak_mib"], refused, living)


def visible_ledgers(path: str, environment: Mapping[str, str]) -> tuple["Ledger", ...]:
    """The virtual GPUs that a process with this environment sees; ``{gpu}`` in the path stands for a GPU's number."""
    if "{gpu}" not in path:
        return (Ledger(path),)
    devices = environment.get(VISIBLE_GPUS, "0").split(",")
    return tuple(Ledger(path.replace("{gpu}", device)) for device in devices)


class Ledger:
    """The file of one virtual GPU. Every method is one short critical section across all processes.

    All of them raise LedgerError.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def create(self, capacity_mib: int) -> "Ledger":
        """Create (or reset) the file of a GPU with this much memory."""
        with self._locked(os.O_RDWR | os.O_CREAT) as descriptor:
            _write(descriptor, LedgerSnapshot(capacity_mib))
        return self

    def allocate(self, pid: int, mib: int, model: str = "") -> None:
        """Set what ``pid`` holds, in place of what it held before; its model stays if none is given.

        Raises LedgerFull, and then nothing has changed.
        """
        with self._locked(os.O_RDWR) as descriptor:
            contents = _read(descriptor, self.path)
            allocations = {allocation.pid: allocation for allocation in contents.allocations}
            before = allocations.get(pid)
            name = model or (before.model if before else "")
            free_mib = contents.free_mib + (before.mib if before else 0)
            fits = mib <= free_mib or (before is not None and mib <= before.mib)
            if fits:
                allocations[pid] = Allocation(pid, name, mib, process_started(pid) or 0, time.time())
                contents.allocations = tuple(allocations.values())
                contents.peak_mib = max(contents.peak_mib, contents.used_mib)
            else:
                contents.refused += (Refusal(pid, name, mib, free_mib, time.time()),)
            _write(descriptor, contents)
        if not fits:
            raise LedgerFull(mib, free_mib, contents.capacity_mib)

    def release(self, pid: int) -> None:
        """Remove the allocation of ``pid``, if it has one."""
        with self._locked(os.O_RDWR) as descriptor:
            contents = _read(descriptor, self.path)
            contents.allocations = tuple(one for one in contents.allocations if one.pid != pid)
            _write(descriptor, contents)

    def snapshot(self) -> LedgerSnapshot:
        """The present contents; processes that have died, zombies too, hold nothing."""
        with self._locked(os.O_RDWR) as descriptor:
            return _read(descriptor, self.path)

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

    criu restores processes into a time namespace, in which all start times are shifted. The shift is taken out, so
    that all processes of the machine compute the same number.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19]) - _namespace_ticks()


def _namespace_ticks() -> int:
    """How far the clock of this process's time namespace is ahead of the machine's."""
    try:
        _, seconds, nanoseconds = Path("/proc/self/timens_offsets").read_text().splitlines()[1].split()
    except (OSError, IndexError):
        return 0
    return round((int(seconds) + int(nanoseconds) / 1e9) * TICKS_PER_SECOND)


def _is_same(started: int | None, recorded: int) -> bool:
    return started is not None and abs(started - recorded) <= ROUNDING_TICKS


def _read(descriptor: int, path: Path) -> LedgerSnapshot:
    try:
        return LedgerSnapshot.decode(json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0)))
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{path} is not a GPU ledger: {error}") from error


def _write(descriptor: int, contents: LedgerSnapshot) -> None:
    contents.refused = contents.refused[-REFUSALS_KEPT:]
    # Padded to the old length and written by one system call: a writer that is killed cannot leave half a document.
    size = os.fstat(descriptor).st_size
    os.pwrite(descriptor, json.dumps(asdict(contents), indent=1).encode().ljust(size), 0)
