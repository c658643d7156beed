import os
from pathlib import Path

import pytest

from llmux.simulation.engine import memory as memory_module
from llmux.simulation.engine.memory import KV_CACHE, TAGS, WEIGHTS, EngineMemory
from llmux.simulation.engine.options import parse
from llmux.simulation.ledger import Ledger, LedgerFull, process_started


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "gpu.json").create(1000)


def memory_of(ledger: Ledger, *flags: str) -> EngineMemory:
    options, _, _ = parse(["serve", "m", "--sim-gpu-ledger", str(ledger.path), *flags], {})
    return EngineMemory(options, os.getpid())


def test_the_allocation_follows_what_is_asleep(ledger: Ledger) -> None:
    memory = memory_of(ledger, "--sim-gpu-memory", "500", "--sim-residue", "100")
    used = []
    for asleep in (set(), set(TAGS), {KV_CACHE}, {WEIGHTS}):
        memory.hold(asleep)
        used.append(ledger.snapshot().used_mib)
    assert used == [500, 100, 300, 300]


def test_a_residue_larger_than_the_whole_does_not_grow_the_allocation(ledger: Ledger) -> None:
    memory = memory_of(ledger, "--sim-gpu-memory", "50", "--sim-residue", "100")
    memory.hold(set(TAGS))
    assert ledger.snapshot().used_mib == 50


def test_a_process_restored_from_an_image_allocates_its_memory_again(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = memory_of(ledger, "--sim-gpu-memory", "500")
    memory.hold(set())
    ledger.release(os.getpid())
    memory.allocate_again_if_restored()
    assert ledger.snapshot().used_mib == 0
    monkeypatch.setattr(memory_module, "process_started", lambda pid: (process_started(pid) or 0) + 1)
    memory.allocate_again_if_restored()
    assert ledger.snapshot().used_mib == 500


def test_a_restored_process_that_no_longer_fits_gets_the_error(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of(ledger, "--sim-gpu-memory", "500")
    memory.hold(set())
    ledger.create(499)
    monkeypatch.setattr(memory_module, "process_started", lambda pid: (process_started(pid) or 0) + 1)
    with pytest.raises(LedgerFull):
        memory.allocate_again_if_restored()
