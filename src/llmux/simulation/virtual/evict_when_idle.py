"""What other programs do, to compare with. A module of its own, as it must be compiled where the policies are."""

import math

from llmux.core.identifiers import Seconds
from llmux.core.policies.base import Bring, Choice, NoQuantum, PolicyView, Stay


class EvictWhenIdle(NoQuantum):
    """The rule of llama-swap and Ollama: bring the model whose request has waited the longest, once those in its way
    are idle. As it bounds no wait, it is not a policy to configure, and runs without ``max_wait_seconds``.
    """

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        for candidate in view.candidates():
            if all(leaving.idle_since is not None for leaving in view.in_the_way(candidate)):
                return Bring(candidate.model)
        return Stay(math.inf)
