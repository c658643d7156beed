"""First come, first served: switch at the first request for another model."""

from llmux.core.identifiers import Seconds
from llmux.core.policies.base import Bring, Choice, NoQuantum, PolicyView, Stay


class Fifo(NoQuantum):
    """Switches at once to the model whose request has waited longest."""

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        oldest = view.oldest()
        return Stay(float("inf")) if oldest is None else Bring(oldest.model)
