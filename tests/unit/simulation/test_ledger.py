import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmux.simulation import ledger as ledger_module
from llmux.simulation.ledger import Ledger, LedgerError, LedgerFull, process_started


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "gpu.json").create(1000)


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def own_pid() -> int:
    return int(Path("/proc/self").readlink().name)


def test_allocations_add_up_and_shrink_but_the_peak_stays(ledger: Ledger, other: subprocess.Popen[bytes]) -> None:
    ledger.allocate(own_pid(), 600, "a")
    ledger.allocate(other.pid, 400, "b")
    ledger.allocate(own_pid(), 50)
    snapshot = ledger.snapshot()
    assert {(allocation.model, allocation.mib) for allocation in snapshot.allocations} == {("a", 50), ("b", 400)}
    assert (snapshot.used_mib, snapshot.free_mib, snapshot.peak_mib, snapshot.refused) == (450, 550, 1000, ())


def test_an_allocation_that_does_not_fit_is_refused_recorded_and_changes_nothing(
    ledger: Ledger, other: subprocess.Popen[bytes]
) -> None:
    ledger.allocate(own_pid(), 600, "a")
    with pytest.raises(LedgerFull, match="401 MiB wanted, 400 of 1000 MiB free"):
        ledger.allocate(other.pid, 401, "b")
    snapshot = ledger.snapshot()
    assert (snapshot.used_mib, snapshot.peak_mib) == (600, 600)
    assert [(refusal.model, refusal.wanted_mib, refusal.free_mib) for refusal in snapshot.refused] == [("b", 401, 400)]


def test_growing_counts_only_what_is_new(ledger: Ledger) -> None:
    ledger.allocate(own_pid(), 900, "a")
    ledger.allocate(own_pid(), 1000)
    assert ledger.snapshot().used_mib == 1000


def test_a_released_or_dead_process_holds_nothing(ledger: Ledger, other: subprocess.Popen[bytes]) -> None:
    ledger.allocate(own_pid(), 500, "a")
    ledger.allocate(other.pid, 500, "b")
    ledger.release(own_pid())
    assert [allocation.model for allocation in ledger.snapshot().allocations] == ["b"]
    other.kill()
    other.wait()
    assert ledger.snapshot().allocations == ()


def test_a_recycled_pid_does_not_inherit_the_allocation(ledger: Ledger) -> None:
    ledger.allocate(own_pid(), 500, "a")
    document = json.loads(ledger.path.read_text())
    document["allocations"][0]["started"] -= 2
    ledger.path.write_text(json.dumps(document))
    assert ledger.snapshot().used_mib == 0


def test_a_zombie_has_no_start_time() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()
        stat = Path(f"/proc/{process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        assert process_started(process.pid) is None
    assert process_started(own_pid()) is not None


def test_a_shorter_document_leaves_no_rest_of_the_longer_one(ledger: Ledger) -> None:
    ledger.allocate(own_pid(), 500, "a-model-with-a-very-long-name")
    ledger.release(own_pid())
    assert json.loads(ledger.path.read_text())["allocations"] == []


def test_processes_that_race_never_exceed_the_capacity(ledger: Ledger) -> None:
    program = (
        "import os, sys\n"
        "from llmux.simulation.ledger import Ledger, LedgerFull\n"
        "for _ in range(40):\n"
        "    try:\n"
        "        Ledger(sys.argv[1]).allocate(os.getpid(), 400, 'racer')\n"
        "        Ledger(sys.argv[1]).allocate(os.getpid(), 0)\n"
        "    except LedgerFull:\n"
        "        pass\n"
    )
    racers = [subprocess.Popen([sys.executable, "-c", program, str(ledger.path)]) for _ in range(3)]
    assert [racer.wait(timeout=30) for racer in racers] == [0, 0, 0]
    assert 400 <= ledger.snapshot().peak_mib <= 800


@pytest.mark.parametrize("content", [None, "", "[]", '{"capacity_mib": 1}'])
def test_an_unusable_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "gpu.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LedgerError, match=str(path)):
        Ledger(path).snapshot()


def test_a_process_is_recognised_from_another_time_namespace(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """In which criu puts what it restores: all start times there are shifted by the same."""
    outside = process_started(own_pid())
    assert outside is not None
    monkeypatch.setattr(ledger_module, "_namespace_ticks", lambda: -125)
    assert process_started(own_pid()) == outside + 125
