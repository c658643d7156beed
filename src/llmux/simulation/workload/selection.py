"""Puts traces together and chooses from them: a part of the time, a share of the requests, longer answers."""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from llmux.simulation.workload.call import TracedCall, TraceError
from llmux.simulation.workload.reading import Trace

APART_SECONDS = 24 * 3600.0
"""Files with a longer pause between them were hardly meant to be read together as they are."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What to take of a trace. ``thin`` is the probability that a request is kept, ``stretch`` lengthens answers."""

    skip_seconds: float = 0.0
    seconds: float = float("inf")
    thin: float = 1.0
    stretch: float = 1.0
    seed: int = 1
    align: bool = False


def merge(traces: Sequence[Trace], *, align: bool = False) -> list[TracedCall]:
    """All calls on one clock that begins with the first of them; ``align``: each file's own first call is at 0.

    Raises ``TraceError`` where the files' clocks have nothing to do with each other.
    """
    if not align:
        _check_clocks(traces)
    beginning = min(trace.calls[0].at_seconds for trace in traces)
    return list(
        heapq.merge(
            *(_shifted(trace.calls, trace.calls[0].at_seconds if align else beginning) for trace in traces),
            key=lambda call: call.at_seconds,
        )
    )


def select(calls: Sequence[TracedCall], selection: Selection) -> list[TracedCall]:
    """The chosen calls; the same for the same seed, and a thinner choice is part of a denser one."""
    chance = random.Random(selection.seed)
    end = selection.skip_seconds + selection.seconds
    chosen = []
    for call in calls:
        keep, rounding = chance.random(), chance.random()
        if selection.skip_seconds <= call.at_seconds < end and keep < selection.thin:
            output = max(1, int(call.output_tokens * selection.stretch + rounding))
            at = call.at_seconds - selection.skip_seconds
            chosen.append(TracedCall(at, call.model, call.prompt_tokens, output))
    if not chosen:
        raise TraceError("nothing is left of the trace: take a longer part of it, or a greater share")
    return chosen


def _shifted(calls: Sequence[TracedCall], beginning: float) -> list[TracedCall]:
    return [
        TracedCall(call.at_seconds - beginning, call.model, call.prompt_tokens, call.output_tokens) for call in calls
    ]


def _check_clocks(traces: Sequence[Trace]) -> None:
    remedy = "; with --align each begins with its own first request"
    if len({trace.dated for trace in traces}) > 1:
        raise TraceError(f"some traces carry dates and some plain seconds, so they cannot be put side by side{remedy}")
    spans = sorted((trace.calls[0].at_seconds, trace.calls[-1].at_seconds, trace.source) for trace in traces)
    latest = spans[0][1]
    for begins, ends, source in spans:
        if begins - latest > APART_SECONDS:
            raise TraceError(f"{source} begins {(begins - latest) / 3600:.0f} hours after the others end{remedy}")
        latest = max(latest, ends)


def models_of(calls: Sequence[TracedCall]) -> list[str]:
    """The models that are asked for, by their first request."""
    return list(dict.fromkeys(chain(call.model for call in calls)))
