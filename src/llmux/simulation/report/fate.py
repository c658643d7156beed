"""What came of one request of a trace."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fate:
    """Times are in seconds from the beginning; None where it did not come to that."""

    model: str
    arrived_at: float
    admitted_at: float | None
    first_token_at: float | None
    ended_at: float | None
    served: bool
