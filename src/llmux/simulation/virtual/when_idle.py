"""The rule of llama-swap and Ollama, to compare with: a model leaves only when it has nothing to do."""

from llmux.core.identifiers import Seconds
from llmux.core.policies.base import Bring, Choice, NoQuantum, PolicyView, Stay


class WhenIdle(NoQuantum):
    """Brings whoever has waited longest once those in its way are idle. It bounds nobody's wait, so it is no choice
    for a configuration; the run that uses it switches the core's bound off.
    """

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        """See ``Policy``."""
        for candidate in view.candidates():
            if all(leaving.idle_since is not None for leaving in view.in_the_way(candidate)):
                return Bring(candidate.model)
        return Stay(float("inf"))
