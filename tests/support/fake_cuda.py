"""NVIDIA's driver as far as it suspends processes: one state machine, behind a stand-in for each of its two doors.

The truth is a locked file: what each process is, what was done, and every violation of the rules. The memory is that of
simulated engines in their ledger: a checkpoint gives it back, a restore takes it again. A process that is locked cannot
go on: it is stopped by a signal, as it would stop at its next use of CUDA.
"""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmux.simulation.ledger import Ledger, LedgerFull

VARIABLE = "FAKE_CUDA"
"""Names the file."""
RUNNING, LOCKED, CHECKPOINTED, FAILED = "running", "locked", "checkpointed", "failed"
NEXT = {
    "lock": (RUNNING, LOCKED),
    "checkpoint": (LOCKED, CHECKPOINTED),
    "restore": (CHECKPOINTED, LOCKED),
    "unlock": (LOCKED, RUNNING),
}
FAULTS = ("fail", "hang", "die", "lie", "break")
"""An action fails without effect; never ends; ends whoever does it, half-way; has no effect and says otherwise; or
leaves the process in the state from which nothing leads back."""
REPOSITORY = Path(__file__).resolve().parents[2]


class Refused(Exception):
    """The driver refuses an action."""


class FakeCuda:
    """The driver; ``path`` is its file."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def create(self, ledger: Path, models: Mapping[str, int] | None = None) -> "FakeCuda":
        """Start over, with the virtual GPU on which processes hold memory."""
        document = {"ledger": str(ledger), "processes": {}, "done": [], "violations": [], "faults": {}}
        self.path.write_text(json.dumps(document))
        return self

    def break_action(self, action: str, how: str, times: int = -1) -> None:
        """Let an action, or reading the state (``state``), go wrong; so many times, -1: always, 0: no more."""
        with self._open() as truth:
            truth["faults"][action] = [how, times]

    @property
    def violations(self) -> list[str]:
        """Every breach of the driver's or of the suspend's rules."""
        with self._open() as truth:
            return list(truth["violations"])

    @property
    def done(self) -> list[str]:
        """The actions that had their effect, in order."""
        with self._open() as truth:
            return [action for action, _ in truth["done"]]

    def state(self, pid: int) -> str | None:
        """None for a process that holds no memory of the GPU."""
        with self._open() as truth:
            strike = _strike(truth, "state")
            found = _process(truth, pid)
        _suffer(strike)
        return None if found is None else str(found["state"])

    def act(self, action: str, pid: int) -> None:
        """Raises Refused."""
        with self._open() as truth:
            strike = _strike(truth, action)
            if strike in (None, "die", "break"):
                _apply(truth, action, pid)
            if strike == "break":
                truth["processes"][str(pid)]["state"] = FAILED
        _suffer(strike)
        if strike in ("fail", "break"):
            raise Refused("injected failure")

    def suffer(self, what: str) -> None:
        """Let something beside the driver go wrong, if ``break_action`` said so."""
        with self._open() as truth:
            strike = _strike(truth, what)
        if strike == "fail":
            sys.exit(1)
        _suffer(strike)

    def note_dump(self, pids: list[int]) -> None:
        """criu is about to dump these processes, without a plugin."""
        with self._open() as truth:
            for pid in pids:
                found = _process(truth, pid)
                if found is not None and found["state"] != CHECKPOINTED:
                    truth["violations"].append(f"dump of {pid}, which is {found['state']}")

    @contextmanager
    def _open(self) -> Iterator[dict[str, Any]]:
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            truth = json.loads(self.path.read_text())
            yield truth
            # In one go: whoever writes may be killed by another thread's fault.
            draft = self.path.with_suffix(".draft")
            draft.write_text(json.dumps(truth))
            draft.replace(self.path)


def _strike(truth: dict[str, Any], action: str) -> str | None:
    how, times = truth["faults"].get(action, (None, 0))
    if not times:
        return None
    truth["faults"][action] = [how, times - 1 if times > 0 else times]
    return str(how)


def _suffer(strike: str | None) -> None:
    if strike == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while strike == "hang":
        time.sleep(3600)


def _process(truth: dict[str, Any], pid: int) -> dict[str, Any] | None:
    """What is known of a process; one that holds memory runs."""
    ledger = Ledger(truth["ledger"])
    for allocation in ledger.snapshot().allocations:
        if allocation.pid == pid:
            found = truth["processes"].setdefault(str(pid), {"state": RUNNING, "model": allocation.model})
            found["mib"] = allocation.mib
    found = truth["processes"].get(str(pid))
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return found
    return None


def _apply(truth: dict[str, Any], action: str, pid: int) -> None:
    process = _process(truth, pid)
    if process is None:
        raise Refused("invalid value")
    before, after = NEXT[action]
    if process["state"] != before:
        truth["violations"].append(f"{action} of {pid}, which is {process['state']}")
        raise Refused("illegal state")
    others = [_process(truth, int(other)) for other in list(truth["processes"]) if int(other) != pid]
    ranks = [other["state"] for other in others if other is not None and other["model"] == process["model"]]
    if action == "checkpoint" and RUNNING in ranks:
        truth["violations"].append(f"checkpoint of {pid} while another rank runs")
    if action == "unlock" and CHECKPOINTED in ranks:
        truth["violations"].append(f"unlock of {pid} while another rank is not restored")
    ledger = Ledger(truth["ledger"])
    if action == "checkpoint":
        ledger.release(pid)
    elif action == "restore":
        try:
            ledger.allocate(pid, process["mib"], process["model"])
        except LedgerFull:
            raise Refused("out of memory") from None
    process["state"] = after
    truth["done"].append([action, pid])
    if action in ("lock", "unlock"):
        os.kill(pid, signal.SIGSTOP if action == "lock" else signal.SIGCONT)


def program() -> None:
    """What the program ``cuda-checkpoint`` does."""
    words = sys.argv[1:]
    pid = int(words[words.index("--pid") + 1])
    driver = FakeCuda(os.environ[VARIABLE])
    try:
        if words[0] == "--get-state":
            state = driver.state(pid)
            if state is None:
                sys.exit(f"Could not find restore thread for process ID {pid}")
            sys.stdout.write(f"{state}\n")
        else:
            action = words[words.index("--action") + 1]
            if ("--timeout" in words) != (action == "lock"):
                sys.exit("--timeout is for lock")
            driver.act(action, pid)
    except Refused as reason:
        sys.exit(f'Could not do it on process ID {pid}: "{reason}"')


PROGRAM = f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
BINDING = PROGRAM.partition("\n")[2] + "from tests.support.fake_cuda_binding import *\n"


def install_program(directory: Path) -> str:
    """Put a stand-in for ``cuda-checkpoint`` there; returns its path."""
    file = directory / "cuda-checkpoint"
    file.write_text(PROGRAM + "from tests.support.fake_cuda import program\nprogram()\n")
    file.chmod(0o755)
    return str(file)


CRIU = (
    PROGRAM
    + """import os
words = sys.argv[1:]
plugins = words[words.index("-L") + 1] if "-L" in words else ""
has_plugin = os.path.exists(os.path.join(plugins, "cuda_plugin.so"))
if plugins:
    del words[words.index("-L"):words.index("-L") + 2]
if words[0] == "dump":
    import psutil
    from tests.support.fake_cuda import VARIABLE, FakeCuda
    driver = FakeCuda(os.environ[VARIABLE])
    root = psutil.Process(int(words[words.index("--tree") + 1]))
    if not has_plugin:
        driver.note_dump([one.pid for one in (root, *root.children(recursive=True))])
    driver.suffer("dump")
os.execv({criu!r}, ({criu!r}, *words))
"""
)


def install_criu(directory: Path, criu: str) -> str:
    """Put a criu there that is the real one, and has a breach noted if it dumps a process which uses the GPU.

    A plugin for CUDA, where there is one, is not loaded: it is taken to do its work.
    """
    file = directory / "criu"
    file.write_text(CRIU.replace("{criu!r}", repr(criu)))
    file.chmod(0o755)
    return str(file)


def install_binding(directory: Path) -> dict[str, str]:
    """Put a stand-in for cuda-bindings there; returns the variables with which it is found."""
    package = directory / "python" / "cuda" / "bindings"
    package.mkdir(parents=True)
    (package / "driver.py").write_text(BINDING)
    return {"PYTHONPATH": str(directory / "python")}
