"""The demo's figures at its end, as JSON and for a reader."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmux.simulation.demo.scenarios import Scenario
from llmux.simulation.demo.state import DemoState
from llmux.simulation.demo.view import LEGEND, axis_line, colours_of, duration, gibibytes, joined, strip_line
from llmux.simulation.figures import Distribution, percentile
from llmux.simulation.ledger import LedgerSnapshot
from llmux.simulation.residency import Shares, Switch
from llmux.simulation.traffic import Ending, RequestOutcome

PROBLEMS_SHOWN = 10
NAME_CELLS = 11
WIDTH_MAX = 100


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """The part of one model."""

    name: str
    requests: int
    answered: int
    switches: int
    """Switches to the model."""
    wait: Distribution


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run. Waits are those of all requests that llmux has forwarded to an engine."""

    seconds: float
    endings: Counter[Ending]
    streamed: int
    switches: tuple[Switch, ...]
    wait: Distribution
    shares: Shares
    models: tuple[ModelSummary, ...]
    gpus: tuple[LedgerSnapshot, ...]
    problems: tuple[str, ...]

    @property
    def requests(self) -> int:
        return self.endings.total()

    @property
    def is_good(self) -> bool:
        """Whether no request was lost or answered wrongly, and no GPU was ever double-booked."""
        return not (self.endings[Ending.LOST] or self.endings[Ending.WRONG] or self.over_commitments)

    @property
    def over_commitments(self) -> int:
        return sum(len(gpu.refused) for gpu in self.gpus)

    def as_data(self) -> dict[str, Any]:
        """For ``--json``: times in seconds, shares from 0 to 1. Switching includes draining."""
        totals = sorted(switch.total_seconds for switch in self.switches)
        shares = self.shares
        return {
            "ok": self.is_good,
            "seconds": round(self.seconds, 3),
            "requests": {
                "sent": self.requests,
                "streamed": self.streamed,
                **{ending.name.lower(): self.endings[ending] for ending in Ending},
            },
            "wait_seconds": _wait_data(self.wait),
            "switches": {
                "count": len(self.switches),
                "cold_starts": sum(switch.from_cold for switch in self.switches),
                "p50_seconds": _rounded(percentile(totals, 50)),
                "longest_seconds": _rounded(percentile(totals, 100)),
            },
            "time_share": {
                "serving": round(shares.serving, 4),
                "switching": round(shares.switching + shares.draining, 4),
                "idle": round(shares.idle, 4),
                "draining": round(shares.draining, 4),
            },
            "gpus": [
                {"capacity_mib": gpu.capacity_mib, "peak_mib": gpu.peak_mib, "over_commitments": len(gpu.refused)}
                for gpu in self.gpus
            ],
            "models": {
                model.name: {
                    "requests": model.requests,
                    "answered": model.answered,
                    "brought_in": model.switches,
                    "wait_seconds": _wait_data(model.wait),
                }
                for model in self.models
            },
            "problems": list(self.problems),
        }


def summarise(
    models: Sequence[str],
    outcomes: Sequence[RequestOutcome],
    switches: Sequence[Switch],
    shares: Shares,
    gpus: Sequence[LedgerSnapshot],
    seconds: float,
) -> Summary:
    """The figures of a run."""
    problems = [f"{one.request.model}, {one.request.kind}: {one.problem}" for one in outcomes if one.problem]
    problems += [
        f"{refusal.model or 'an engine'} wanted {refusal.wanted_mib} MiB of the GPU when {refusal.free_mib} were free"
        for gpu in gpus
        for refusal in gpu.refused
    ]
    return Summary(
        seconds=seconds,
        endings=Counter(outcome.ending for outcome in outcomes),
        streamed=sum(outcome.request.kind.is_stream for outcome in outcomes),
        switches=tuple(switches),
        wait=wait_of(outcomes),
        shares=shares,
        models=tuple(_model_summary(name, outcomes, switches) for name in models),
        gpus=tuple(gpus),
        problems=tuple(problems[:PROBLEMS_SHOWN]),
    )


def wait_of(outcomes: Sequence[RequestOutcome]) -> Distribution:
    """Times in llmux's queue of the requests that left it for an engine."""
    return Distribution.of(wait for outcome in outcomes if (wait := outcome.wait_seconds) is not None)


def _model_summary(name: str, outcomes: Sequence[RequestOutcome], switches: Sequence[Switch]) -> ModelSummary:
    own = [outcome for outcome in outcomes if outcome.request.model == name]
    answered = sum(outcome.ending is Ending.ANSWERED for outcome in own)
    return ModelSummary(name, len(own), answered, sum(switch.model == name for switch in switches), wait_of(own))


def _wait_data(wait: Distribution) -> dict[str, float | None]:
    return {"p50": _rounded(wait.p50), "p99": _rounded(wait.p99), "max": _rounded(wait.max)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def render_summary(summary: Summary, state: DemoState, width: int) -> RenderableType:
    """The figures, and which model was on the GPU when."""
    cells = min(width, WIDTH_MAX) - NAME_CELLS - 2
    end = max(summary.seconds, 1.0)
    rows: list[RenderableType] = [
        _verdict(summary),
        Text(),
        _figures_table(summary),
        Text(),
        _models_table(summary, state.scenario),
        Text(),
        *(
            Text(name.ljust(NAME_CELLS), colour).append_text(
                strip_line(state.monitor.timeline, name, colour, 0.0, end, cells, summary.seconds)
            )
            for name, colour in colours_of(state.scenario).items()
        ),
        Text(" " * NAME_CELLS).append_text(axis_line(0.0, end, cells)),
        Text(" " * NAME_CELLS + LEGEND, style="dim"),
    ]
    rows += [Text(f"! {problem}", style="red", overflow="fold") for problem in summary.problems]
    return Group(*rows)


def _verdict(summary: Summary) -> Text:
    endings = summary.endings
    if summary.is_good:
        gpus = "one GPU" if len(summary.gpus) == 1 else f"{len(summary.gpus)} GPUs"
        verdict = "interrupted, none lost until then" if endings[Ending.CUT_SHORT] else "no request lost"
        return Text.assemble(
            ("llmux demo: ", "bold"),
            (verdict, "bold green"),
            (
                f", {summary.requests} requests, {len(summary.models)} models, {gpus}, {duration(summary.seconds)}",
                "bold",
            ),
        )
    faults = [f"{endings[ending]} {ending}" for ending in (Ending.LOST, Ending.WRONG) if endings[ending]]
    if summary.over_commitments:
        faults.append(f"GPU memory over-committed {summary.over_commitments} times")
    return Text.assemble(("llmux demo: ", "bold"), (", ".join(faults), "bold red"), f" of {summary.requests} requests")


def _figures_table(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=NAME_CELLS - 2, style="dim")
    table.add_column()
    endings, shares = summary.endings, summary.shares
    shown = [ending for ending in Ending if endings[ending] or ending is not Ending.CUT_SHORT]
    counts = [Text(f"{endings[ending]} {ending}", style=_style(ending, endings[ending])) for ending in shown]
    table.add_row("requests", joined([*counts, f"{summary.streamed} streamed"]))
    wait = summary.wait
    parts = [f"p50 {duration(wait.p50)}", f"p99 {duration(wait.p99)}", f"longest {duration(wait.max)}"]
    table.add_row("waits", joined(parts))
    totals = Distribution.of(switch.total_seconds for switch in summary.switches)
    cold = sum(switch.from_cold for switch in summary.switches)
    parts = [f"{len(summary.switches)}, {cold} with a start of the engine", f"p50 {duration(totals.p50)}"]
    table.add_row("switches", joined([*parts, f"longest {duration(totals.max)}"]))
    switching = f"{shares.switching + shares.draining:.0%} switching"
    note = (f" (in {shares.draining:.0%} answers still ran)", "dim")
    idle = f"{shares.idle:.0%} idle"
    table.add_row("time", joined([f"{shares.serving:.0%} serving", Text.assemble(switching, note), idle]))
    for number, gpu in enumerate(summary.gpus):
        memory = f"at most {gibibytes(gpu.peak_mib)} of {gibibytes(gpu.capacity_mib)} GiB held"
        refused = (f"{len(gpu.refused)} over-commitments", "bold red" if gpu.refused else "green")
        table.add_row("GPU" if len(summary.gpus) == 1 else f"GPU {number}", joined([memory, refused]))
    return table


def _style(ending: Ending, number: int) -> str:
    if ending in (Ending.LOST, Ending.WRONG):
        return "bold red" if number else "green"
    return ""


def _models_table(summary: Summary, scenario: Scenario) -> Table:
    colours = colours_of(scenario)
    evictions = {model.name: model.eviction for model in scenario.models}
    table = Table.grid(padding=(0, 2))
    table.add_column(width=NAME_CELLS - 2)
    table.add_column(width=22)
    for width in (8, 8, 9, 9):
        table.add_column(justify="right", width=width)
    heads = ("", "leaves the GPU by", "requests", "switches", "wait p50", "wait p99")
    table.add_row(*(Text(head, style="dim") for head in heads))
    for model in summary.models:
        table.add_row(
            Text(model.name, style=colours.get(model.name, "")),
            Text(evictions.get(model.name, ""), style="dim"),
            str(model.requests),
            str(model.switches),
            duration(model.wait.p50),
            duration(model.wait.p99),
        )
    return table
