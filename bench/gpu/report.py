"""What a check has shown, as a table for docs/residency.md and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.gpu.beside import Beside
from bench.gpu.machine import Machine
from bench.gpu.switches import Combination, Plan, Together, moved_mib
from llmux.gpus.memory import MIB

HEADER = (
    "| eviction | switches | leaving p50 / max | coming back p50 / max | GB/s out / back | held / given back | "
    "frozen stream | |\n|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Report:
    """One check."""

    machine: Machine
    plan: Plan
    beside: Beside
    together: Together
    combinations: Sequence[Combination]
    seconds: float
    date: str

    @property
    def problems(self) -> list[str]:
        """Everything that was wrong; empty if the check has passed."""
        own = [f"{one.eviction}: {problem}" for one in self.combinations for problem in one.problems]
        beside = [f"beside another process: {problem}" for problem in self.beside.problems]
        return [*beside, *(f"two that fit together: {problem}" for problem in self.together.problems), *own]

    @property
    def is_complete(self) -> bool:
        """Whether every possible combination had all of its switches: otherwise the time was up."""
        tried = [one for one in self.combinations if one.why_not is None]
        return all(one.problems or one.switches == self.plan.switches for one in tried)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "date": self.date,
            "passed": not self.problems,
            "complete": self.is_complete,
            "problems": self.problems,
            "seconds": round(self.seconds, 1),
            "machine": self.machine.as_data(),
            "engine": {"weights_mib": self.plan.weights_mib, "kv_cache_mib": self.plan.kv_cache_mib},
            "filled_mib": self.plan.filled_mib,
            "planted_fault": self.plan.planted_fault,
            "beside": asdict(self.beside),
            "together": asdict(self.together),
            "combinations": [{**one.as_data(), **self._rates(one)} for one in self.combinations],
        }

    def _rates(self, one: Combination) -> dict[str, float | None]:
        out = _rate(moved_mib(self.plan, one.eviction, out=True), one.leave_seconds)
        back = _rate(moved_mib(self.plan, one.eviction, out=False), one.wake_seconds)
        return {"gb_per_second_out": out, "gb_per_second_back": back}

    def markdown(self) -> str:
        """The machine, the table, and what was not possible."""
        tried = [one for one in self.combinations if one.why_not is None]
        rest = [one for one in self.combinations if one.why_not is not None]
        lines = [self._machine(), "", HEADER, *map(self._row, tried), ""]
        lines += [f"- `{one.eviction}`: not possible here: {one.why_not}." for one in rest]
        lines += ["", self._beside(), "", self._together()]
        if not self.is_complete:
            lines += ["", "**INCOMPLETE: the time was up before every combination had its switches.**"]
        lines += ["", *(f"- **FAILED** {problem}" for problem in self.problems)]
        return "\n".join(lines).rstrip() + "\n"

    def _machine(self) -> str:
        machine = self.machine
        what = f"{machine.gpu}, {machine.gpu_mib} MiB, driver {machine.driver} (CUDA {machine.driver_cuda})"
        if not machine.is_gpu:
            what = "**No GPU**: the engines' own memory took its place, and a file that of host memory"
        plan = self.plan
        room = plan.filled_mib and f", which did not fit together: another process held {plan.filled_mib} MiB"
        planted = f" The engines had the planted fault {self.plan.planted_fault}." if self.plan.planted_fault else ""
        return (
            f"{self.date}. {what}. PyTorch {machine.torch}, criu {machine.criu or 'none'}, kernel {machine.kernel}, "
            f"{machine.cpus} cores, {machine.host_mib} MiB of host memory, llmux {machine.llmux}. Two engines of "
            f"{plan.weights_mib} MiB of weights and a KV cache of {plan.kv_cache_mib} MiB each{room or ''}."
            f"{planted} {self.seconds:.0f} s in all."
        )

    def _row(self, one: Combination) -> str:
        rates = self._rates(one)
        gap = "" if one.stream_gap_seconds is None else f"the same text; stood still for {one.stream_gap_seconds:.2f} s"
        cells = (
            f"`{one.eviction}`",
            f"{one.switches}" if one.switches == self.plan.switches else f"{one.switches} of {self.plan.switches}",
            _times(one.leave_seconds),
            _times(one.wake_seconds),
            " / ".join("–" if rate is None else f"{rate:.1f}" for rate in rates.values()),
            f"{one.held_mib} / {one.freed_mib} MiB",
            gap,
            "FAILED" if one.problems else "not tried" if one.is_late else "ok",
        )
        return f"| {' | '.join(cells)} |"

    def _beside(self) -> str:
        beside = self.beside
        named = "names" if beside.is_pid_visible else "does not name (the driver has other process numbers)"
        return (
            f"Beside another process that held {beside.held_mib} MiB: llmux read {beside.reader_free_mib} MiB free, "
            f"PyTorch {beside.torch_free_mib}. A wait for its memory ended {beside.waited_seconds} s after it began, "
            f"when it was released; a wait in vain ended with a warning that {named} the process."
        )

    def _together(self) -> str:
        if self.together.why_not is not None:
            return f"Two engines that fit together were not tried: {self.together.why_not}."
        return f"Two engines that fit together, placed by their memory, held {self.together.held_mib} MiB."


def _times(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.2f} / {max(seconds):.2f} s" if seconds else "–"


def _rate(mib: int | None, seconds: Sequence[float]) -> float | None:
    """In 10**9 bytes a second, by the median."""
    return None if mib is None or not seconds else round(mib * MIB / 1e9 / max(median(seconds), 0.001), 2)
