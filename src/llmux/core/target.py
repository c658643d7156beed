"""What the reader of an answer expects: the objective that scheduling is measured by."""

from dataclasses import dataclass

from llmux.core.identifiers import Seconds
from llmux.core.request import Priority


@dataclass(frozen=True, slots=True)
class Target:
    """When an answer is on time: its k-th token, counted from 0, by the arrival + ``ttft_seconds`` + k / speed."""

    ttft_seconds: Seconds = 10.0
    """As long as people keep their attention on a dialogue (Nielsen, Usability Engineering, 1993)."""
    tokens_per_second: float = 5.0
    """A reader's speed: 238 words a minute (Brysbaert, 2019), at 1.3 tokens to an English word."""

    def is_met(self, ttft_seconds: Seconds, paused_seconds: Seconds) -> bool:
        """Whether an answer that paused for so long after its first token must have been on time throughout.

        That holds where the engine decodes no slower than the reader reads. A reader with a head start may not have
        noticed a longer pause: this errs to the strict side, but needs no count of tokens.
        """
        return ttft_seconds + paused_seconds <= self.ttft_seconds


DEFAULT_TARGET = Target()

BATCH_TTFT_SECONDS: Seconds = 300.0
"""Of a batch request, for which nobody sits waiting: the default time-out."""


@dataclass(frozen=True, slots=True)
class Targets:
    """One model's targets, by the class of the request."""

    interactive: Target = DEFAULT_TARGET
    batch: Target = Target(BATCH_TTFT_SECONDS)

    def of(self, priority: Priority) -> Target:
        """The target of a class."""
        return self.batch if priority is Priority.BATCH else self.interactive
