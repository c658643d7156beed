"""From what was recorded to the figures that are shown at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmux.simulation.demo.observation import TimeShares
from llmux.simulation.demo.records import Ending, Kind, Record
from llmux.simulation.demo.switches import Switch
from llmux.simulation.ledger import LedgerSnapshot
from llmux.simulation.percentile import percentile

PROBLEMS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Waits:
    """How long requests were held by llmux, in seconds; all None when none was measured."""

    p50: float | None
    p99: float | None
    longest: float | None

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Waits":
        """Those of the requests that the client heard the wait of."""
        waits = sorted(record.wait_seconds for record in records if record.wait_seconds is not None)
        return cls(percentile(waits, 50), percentile(waits, 99), waits[-1] if waits else None)


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model's part."""

    name: str
    requests: int
    answered: int
    brought_in: int
    waits: Waits


@dataclass(frozen=True, slots=True)
class Summary:
    """The run in figures."""

    seconds: float
    endings: dict[Ending, int]
    streamed: int
    switches: tuple[Switch, ...]
    waits: Waits
    shares: TimeShares
    models: tuple[ModelFigures, ...]
    gpu: LedgerSnapshot
    problems: tuple[str, ...]

    @property
    def requests(self) -> int:
        """How many were made."""
        return sum(self.endings.values())

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, nothing was wrong, and the GPU was never double-booked."""
        return not (self.endings[Ending.LOST] or self.endings[Ending.WRONG] or self.gpu.refused)

    def as_data(self) -> dict[str, Any]:
        """For ``--json``: times in seconds, shares from 0 to 1."""
        totals = sorted(switch.total_seconds for switch in self.switches)
        whole = self.shares.total or 1.0
        return {
            "ok": self.is_good,
            "seconds": round(self.seconds, 3),
            "requests": {
                "sent": self.requests,
                "streamed": self.streamed,
                **{ending.name.lower(): number for ending, number in self.endings.items()},
            },
            "wait_seconds": _waits_data(self.waits),
            "switches": {
                "count": len(self.switches),
                "cold_starts": sum(switch.from_cold for switch in self.switches),
                "p50_seconds": _rounded(percentile(totals, 50)),
                "longest_seconds": _rounded(totals[-1] if totals else None),
            },
            "time_share": {
                "serving": round(self.shares.serving / whole, 4),
                "switching": round(self.shares.switching / whole, 4),
                "idle": round(self.shares.idle / whole, 4),
                "draining": round(self.shares.draining / whole, 4),
            },
            "gpu": {
                "capacity_mib": self.gpu.capacity_mib,
                "peak_mib": self.gpu.peak_mib,
                "over_commitments": len(self.gpu.refused),
            },
            "models": {
                model.name: {
                    "requests": model.requests,
                    "answered": model.answered,
                    "brought_in": model.brought_in,
                    "wait_seconds": _waits_data(model.waits),
                }
                for model in self.models
            },
            "problems": list(self.problems),
        }


def summarise(
    models: Sequence[str],
    records: Sequence[Record],
    switches: Sequence[Switch],
    shares: TimeShares,
    gpu: LedgerSnapshot,
    seconds: float,
) -> Summary:
    """Add everything up."""
    problems = [f"{record.call.model}, {record.call.kind}: {record.problem}" for record in records if record.problem]
    problems += [
        f"{refusal.model or 'an engine'} wanted {refusal.wanted_mib} MiB of the GPU when {refusal.free_mib} were free"
        for refusal in gpu.refused
    ]
    return Summary(
        seconds=seconds,
        endings={ending: sum(record.ending is ending for record in records) for ending in Ending},
        streamed=sum(record.call.kind is Kind.CHAT_STREAM for record in records),
        switches=tuple(switches),
        waits=Waits.of(records),
        shares=shares,
        models=tuple(_figures(name, records, switches) for name in models),
        gpu=gpu,
        problems=tuple(problems[:PROBLEMS_SHOWN]),
    )


def _figures(name: str, records: Sequence[Record], switches: Sequence[Switch]) -> ModelFigures:
    own = [record for record in records if record.call.model == name]
    answered = sum(record.ending is Ending.ANSWERED for record in own)
    brought_in = sum(switch.model == name for switch in switches)
    return ModelFigures(name, len(own), answered, brought_in, Waits.of(own))


def _waits_data(waits: Waits) -> dict[str, float | None]:
    return {"p50": _rounded(waits.p50), "p99": _rounded(waits.p99), "max": _rounded(waits.longest)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
