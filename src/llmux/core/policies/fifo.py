"""First come, first served: switch at the first request for another model."""

from llmux.core.identifiers import Seconds
from llmux.core.policies.base import Bring, Choice, NoQuantum, PolicyView, Stay


class Fifo(NoQuantum):
    """Brings whoever has waited longest, at once."""

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        """See ``Policy``."""
        oldest = view.oldest()
        return Stay(float("inf")) if oldest is None else Bring(oldest.model)
