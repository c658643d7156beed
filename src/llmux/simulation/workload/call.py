"""One request of a trace."""

from dataclasses import dataclass

from llmux.errors import LlmuxError


@dataclass(frozen=True, slots=True)
class TracedCall:
    """When a client asked which model, and how much: ``at_seconds`` counts from the trace's beginning."""

    at_seconds: float
    model: str
    prompt_tokens: int
    output_tokens: int


class TraceError(LlmuxError):
    """A trace that cannot be used; says where it is wrong and what to do."""
