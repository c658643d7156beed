"""Traffic: requests with their arrival times and their outcomes, and selection from recorded traffic."""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from llmux.errors import LlmuxError
from llmux.simulation.on_time import Progress

MERGE_GAP_SECONDS_MAX = 24 * 3600.0
"""Traces that are further apart were hardly recorded together, so their clocks cannot be combined."""


class TraceError(LlmuxError):
    """A trace cannot be used; the message names the place and the remedy."""


class RequestKind(StrEnum):
    """The endpoint of a request, and whether its answer is streamed."""

    COMPLETION_STREAM = "streamed completion"
    COMPLETION = "plain completion"
    CHAT_STREAM = "streamed chat"
    CHAT = "plain chat"
    EMBEDDING = "embedding"
    IMAGE = "image prompt"
    """Of ComfyUI's ``/prompt``, which is answered before the work is done."""

    @property
    def is_stream(self) -> bool:
        """Whether tokens are sent as they are generated."""
        return self in (RequestKind.COMPLETION_STREAM, RequestKind.CHAT_STREAM)


@dataclass(frozen=True, slots=True)
class TrafficRequest:
    """One request; ``at_seconds`` is its arrival since the beginning of the traffic."""

    at_seconds: float
    model: str
    prompt_tokens: int
    output_tokens: int
    kind: RequestKind = RequestKind.COMPLETION_STREAM
    prompt: str = ""
    """Where it is empty, any text of ``prompt_tokens`` tokens will do."""
    patience_seconds: float | None = None
    """The client disconnects this long after its request; None: it waits."""


class Ending(StrEnum):
    """How a request ended, seen from the client."""

    ANSWERED = "answered"
    LEFT = "left"
    """The client disconnected because its patience was over."""
    CUT_SHORT = "cut short"
    """The run was interrupted while the request was open."""
    LOST = "lost"
    """No answer, an error, or an incomplete answer."""
    WRONG = "wrong"
    """A complete answer other than the model's to this prompt."""


@dataclass(slots=True)
class RequestOutcome:
    """The outcome of one request. Times are seconds since the traffic began; None for what did not happen."""

    request: TrafficRequest
    arrived_at: float
    admitted_at: float | None = None
    """When llmux forwarded it to an engine."""
    first_token_at: float | None = None
    ended_at: float | None = None
    ending: Ending = Ending.LOST
    problem: str = ""
    """Why it was lost or wrong."""
    refused: bool = False
    """Whether it was lost because llmux refused it when it came, for the wait that it expected."""
    progress: Sequence[Progress] = ()
    """How far its answer was before and after each pause that is known of; in between, tokens come evenly."""

    @property
    def wait_seconds(self) -> float | None:
        """Time in llmux's queue."""
        return None if self.admitted_at is None else self.admitted_at - self.arrived_at


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of one file in order of arrival. ``dated``: times are seconds since 1970, not since a beginning."""

    source: str
    requests: tuple[TrafficRequest, ...]
    dated: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """Which requests to take: ``thin`` is the probability of keeping one, ``stretch`` multiplies output tokens."""

    skip_seconds: float = 0.0
    seconds: float = float("inf")
    thin: float = 1.0
    stretch: float = 1.0
    seed: int = 1
    align: bool = False


def merge(traces: Sequence[Trace], *, align: bool = False) -> list[TrafficRequest]:
    """Combine traces on one clock that starts with the first request; ``align``: with the first one of each trace.

    Raises ``TraceError`` if the clocks of the traces cannot be combined.
    """
    if not align:
        _check_clocks(traces)
    start = min(trace.requests[0].at_seconds for trace in traces)
    return list(
        heapq.merge(
            *(_shifted(trace.requests, trace.requests[0].at_seconds if align else start) for trace in traces),
            key=lambda request: request.at_seconds,
        )
    )


def select(requests: Sequence[TrafficRequest], selection: Selection) -> list[TrafficRequest]:
    """The selected requests. The same seed selects the same ones, and a lower ``thin`` a subset of a higher one.

    Raises ``TraceError`` if none is left.
    """
    chance = random.Random(selection.seed)
    end = selection.skip_seconds + selection.seconds
    chosen = []
    for request in requests:
        # Both are drawn for every request, so that one parameter does not change what another one selects.
        keep, rounding = chance.random(), chance.random()
        if selection.skip_seconds <= request.at_seconds < end and keep < selection.thin:
            output_tokens = max(1, int(request.output_tokens * selection.stretch + rounding))
            at_seconds = request.at_seconds - selection.skip_seconds
            chosen.append(TrafficRequest(at_seconds, request.model, request.prompt_tokens, output_tokens))
    if not chosen:
        raise TraceError("nothing is left of the trace: take a longer part of it, or a greater share")
    return chosen


def models_of(requests: Sequence[TrafficRequest]) -> list[str]:
    """The requested models, in order of their first request."""
    return list(dict.fromkeys(request.model for request in requests))


def _shifted(requests: Sequence[TrafficRequest], start: float) -> list[TrafficRequest]:
    return [
        TrafficRequest(request.at_seconds - start, request.model, request.prompt_tokens, request.output_tokens)
        for request in requests
    ]


def _check_clocks(traces: Sequence[Trace]) -> None:
    remedy = "; with --align each begins with its own first request"
    if len({trace.dated for trace in traces}) > 1:
        raise TraceError(f"some traces carry dates and some plain seconds, so they cannot be put side by side{remedy}")
    spans = sorted((trace.requests[0].at_seconds, trace.requests[-1].at_seconds, trace.source) for trace in traces)
    latest = spans[0][1]
    for begins, ends, source in spans:
        if begins - latest > MERGE_GAP_SECONDS_MAX:
            raise TraceError(f"{source} begins {(begins - latest) / 3600:.0f} hours after the others end{remedy}")
        latest = max(latest, ends)
