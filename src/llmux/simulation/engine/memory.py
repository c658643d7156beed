"""The memory of an engine: its allocation on the virtual GPU, and real memory on request."""

import os
from collections.abc import Set
from pathlib import Path

from llmux.simulation.engine.options import EngineOptions
from llmux.simulation.ledger import process_started, visible_ledgers

WEIGHTS = "weights"
KV_CACHE = "kv_cache"
TAGS = (WEIGHTS, KV_CACHE)
"""The parts that sleep and wake separately, in the order in which a wake allocates them."""
READ_BYTES = 4 << 20


def read_weights(model: str) -> None:
    """Read a model's files from their beginning to their end, if it has any here: one file, or those of a directory."""
    path, buffer = Path(model), bytearray(READ_BYTES)
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass


class EngineMemory:
    """Holds what an engine needs for the parts that are awake."""

    def __init__(self, options: EngineOptions, *owner_pids: int) -> None:
        """The allocation is recorded for the owners and ends with them; several, the ranks, have equal parts of it."""
        self._model = options.name
        self._owner_pids = owner_pids
        self._owner_started = process_started(owner_pids[0])
        self._ledgers = visible_ledgers(options.ledger_path, os.environ) if options.ledger_path else ()
        self._residue_mib = options.residue_mib
        self._full_mib = options.gpu_memory_mib or 0
        if self._ledgers and options.gpu_memory_mib is None:
            capacity_mib = min(ledger.snapshot().capacity_mib for ledger in self._ledgers)
            self._full_mib = int(capacity_mib * options.gpu_memory_utilization)
        self._block_bytes = (options.hold_memory_mib << 20) // len(TAGS)
        self._blocks: dict[str, bytearray] = {}
        self.allocated_mib = 0

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The owners other than the engine's root."""
        return tuple(pid for pid in self._owner_pids if pid != os.getpid())

    def hold(self, asleep: Set[str], keep_weights: bool = True) -> None:
        """Adapt the allocation to the tags that are asleep; raises LedgerFull and then leaves it as it was.

        ``keep_weights``: sleeping weights stay in real host memory, as at level 1.
        """
        awake_share = len(TAGS) - len(asleep)
        moving_mib = max(0, self._full_mib - self._residue_mib)
        self._allocate(min(self._residue_mib, self._full_mib) + moving_mib * awake_share // len(TAGS))
        for tag in TAGS:
            if tag not in asleep or (tag == WEIGHTS and keep_weights):
                if tag not in self._blocks and self._block_bytes:
                    self._blocks[tag] = bytearray(b"\x5a") * self._block_bytes
            else:
                self._blocks.pop(tag, None)

    def allocate_again_if_restored(self) -> None:
        """Repeat the allocation if the ledger has forgotten it, as a restored process has a new start time.

        Raises LedgerFull.
        """
        if self._ledgers and (started := process_started(self._owner_pids[0])) != self._owner_started:
            self._owner_started = started
            self._allocate(self.allocated_mib)

    def _allocate(self, mib: int) -> None:
        for ledger in self._ledgers:
            for pid in self._owner_pids:
                ledger.allocate(pid, mib // len(self._owner_pids), self._model)
        self.allocated_mib = mib
