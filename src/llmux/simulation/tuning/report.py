"""What a tuning found: tables of what each change saves, a piece of configuration to paste, and a JSON document."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmux.config.settings import Settings
from llmux.core.eviction import Weights
from llmux.simulation.tables import DIGITS, seconds_text
from llmux.simulation.tuning.changes import Changes, GpuMemory, LeaveBy, is_kept_by_llmux, key_of, value_of
from llmux.simulation.tuning.search import Measured, Tuning, Variant

HEADS = ("mean", "p99", "switches", "GPU idle", "lost")
NOTE = (
    "mean, p99: time to first token in seconds. GPU idle: seconds in which no model on a GPU worked on a request, all "
    "GPUs added up. Below the configuration as it is: what each change alone, and all together, add to its figures."
)
_Half = Callable[[Variant], Measured]


def render(tuning: Tuning, settings: Settings) -> RenderableType:
    """The tables of both halves, and what is proposed."""
    parts: list[RenderableType] = [
        _table("the first half, by which the changes were chosen", tuning, lambda variant: variant.chosen_on),
        Text(),
        _table("the second half, which judges them", tuning, lambda variant: variant.judged_on),
        Text(),
        Text(NOTE, style="dim"),
        Text(),
        Text(conclusion(tuning)),
    ]
    if tuning.holds:
        halves = (tuning.together.chosen_on, tuning.together.judged_on)
        host_mib = max(half.use.sleepers.host_mib_max for half in halves)
        parts += [Text(), Text(fragment(tuning.together.changes, settings, host_mib), style="bold")]
    return Group(*parts)


def conclusion(tuning: Tuning) -> str:
    """What to make of the figures, in a sentence or two."""
    tried = f"{tuning.runs} runs on the first half" + ("" if tuning.is_complete else ", not all that could be tried")
    if not tuning.together.changes:
        return f"No change would have saved anything ({tried})."
    if not tuning.holds:
        return f"What was chosen on the first half saves nothing on the second one: nothing is proposed ({tried})."
    return f"To paste into the configuration ({tried}):"


def fragment(changes: Changes, settings: Settings, host_mib: int) -> str:
    """The changes as a piece of a configuration file, in YAML, with what else has to be done as comments.

    ``host_mib``: what sleepers hold of host memory with them, at most and as far as it is known.
    """
    remarks = "".join(f"# {remark}\n" for remark in _remarks(changes, settings, host_mib))
    return remarks + yaml.safe_dump(proposal(changes), sort_keys=False, allow_unicode=True).rstrip()


def proposal(changes: Changes) -> dict[str, Any]:
    """The changed keys as a configuration file has them."""
    models: dict[str, dict[str, Any]] = {}
    for change in changes:
        models.setdefault(change.model, {})[key_of(change)] = value_of(change)
    return {"models": models}


def _remarks(changes: Changes, settings: Settings, host_mib: int) -> Iterator[str]:
    for change in changes:
        match change:
            case GpuMemory(model=model) if not is_kept_by_llmux(settings, change):
                yield f"{model}: its own arguments must keep it within {value_of(change)}; llmux does not set them."
            case LeaveBy(model=model, eviction=eviction) if eviction.weights is Weights.OFFLOAD:
                together = f": all sleepers together at most {host_mib} MiB" if host_mib else ""
                yield f"{model}: while it is off the GPU, its weights take host memory{together}."


def document(tuning: Tuning) -> dict[str, Any]:
    """For ``--json``: what is proposed, and the figures of both halves."""
    changes = tuning.together.changes
    return {
        "runs": tuning.runs,
        "complete": tuning.is_complete,
        "holds": tuning.holds,
        "proposal": proposal(changes) if tuning.holds else None,
        "first_half": _half_document(tuning, lambda variant: variant.chosen_on),
        "second_half": _half_document(tuning, lambda variant: variant.judged_on),
    }


def _half_document(tuning: Tuning, half: _Half) -> dict[str, Any]:
    return {
        "before": _figures_document(half(tuning.before)),
        "alone": [proposal(one.changes) | _figures_document(half(one)) for one in tuning.alone],
        "together": proposal(tuning.together.changes) | _figures_document(half(tuning.together)),
    }


def _figures_document(measured: Measured) -> dict[str, Any]:
    return {
        "ttft": {"mean": _rounded(measured.ttft_mean), "p99": _rounded(measured.ttft_p99)},
        "switches": measured.switches,
        "gpu_idle_seconds": _rounded(measured.use.idle_seconds),
        "lost": measured.lost,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, DIGITS)


def _table(title: str, tuning: Tuning, half: _Half) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column(title, overflow="fold")
    for head in HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    before = half(tuning.before)
    table.add_row("the configuration as it is", *_cells(before), style="bold")
    for variant in tuning.alone:
        table.add_row(Text(f"  {_described(variant.changes)}"), *_difference(before, half(variant)))
    if tuning.together.changes:
        name = "all together" if tuning.alone else _described(tuning.together.changes)
        table.add_row(Text(f"  {name}"), *_difference(before, half(tuning.together)), style="bold")
    return table


def _described(changes: Changes) -> str:
    if len(changes) > 1:
        return "all sizes of gpu_memory together"
    (change,) = changes
    value = value_of(change)
    return f"{change.model}: {key_of(change)} {'none' if value is None else value}"


def _cells(measured: Measured) -> Sequence[str]:
    seconds = (measured.ttft_mean, measured.ttft_p99)
    idle = seconds_text(measured.use.idle_seconds)
    return (*map(seconds_text, seconds), str(measured.switches), idle, str(measured.lost))


def _difference(before: Measured, after: Measured) -> Sequence[str]:
    return (
        _moved(before.ttft_mean, after.ttft_mean),
        _moved(before.ttft_p99, after.ttft_p99),
        _moved(before.switches, after.switches, str),
        _moved(before.use.idle_seconds, after.use.idle_seconds),
        _moved(before.lost, after.lost, str),
    )


Number = TypeVar("Number", int, float)


def _moved(before: Number | None, after: Number | None, text: Callable[[Number], str] = seconds_text) -> str:
    if before is None or after is None:
        return "–"
    if after == before:
        return "0"
    return f"{'−' if after < before else '+'}{text(abs(after - before))}"
