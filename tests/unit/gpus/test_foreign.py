"""Processes that are not ours, told from our engines' by their numbers."""

import pytest

from llmux.core.identifiers import EVERY_GPU
from llmux.gpus.foreign import ForeignUse, ForeignUses
from llmux.gpus.memory import GpuMemory, GpuProcess

ENGINE, GAME, LEASED = GpuProcess(1, "vllm", 600), GpuProcess(2, "game", 200), GpuProcess(3, "train", 100)


class Gpu:
    """A GPU of 1,000 MiB with these processes on it."""

    def __init__(self, *processes: GpuProcess) -> None:
        self.processes = processes

    def read_memory(self) -> tuple[GpuMemory, ...]:
        return (GpuMemory("0", 1000, sum(process.mib or 0 for process in self.processes)),)

    def read_processes(self) -> tuple[GpuProcess, ...]:
        return self.processes


@pytest.mark.parametrize(
    ("free", "held", "missing"),
    [(500, (900,), 0), (100, (300,), 200), (100, (50,), 50), (100, (50, None), 200), (100, (), 0)],
)
def test_what_is_missing_because_of_others(free, held, missing):
    processes = tuple(GpuProcess(number, "x", mib) for number, mib in enumerate(held))
    assert ForeignUse(free, processes).missing_mib(300) == missing


def test_engines_and_leased_programs_are_not_foreign():
    uses = ForeignUses({EVERY_GPU: Gpu(ENGINE, GAME, LEASED)}, lambda pid: pid == 3, lambda: [1])
    assert uses.read() == {EVERY_GPU: ForeignUse(100, (GAME,))}


def test_a_process_that_has_just_ended_or_begun_is_not_foreign():
    own = iter([[1], [2]])
    uses = ForeignUses({EVERY_GPU: Gpu(ENGINE, GAME)}, lambda pid: False, lambda: next(own))
    assert uses.read() == {EVERY_GPU: ForeignUse(200, ())}


def test_nothing_is_believed_until_one_of_ours_has_been_listed():
    own: list[int] = []
    gpu = Gpu(ENGINE, GAME)
    uses = ForeignUses({EVERY_GPU: gpu}, lambda pid: False, lambda: own)
    assert uses.read() == {}
    own.append(1)
    assert uses.read() == {EVERY_GPU: ForeignUse(200, (GAME,))}
    own.clear()
    gpu.processes = (GAME,)
    assert uses.read() == {EVERY_GPU: ForeignUse(800, (GAME,))}
