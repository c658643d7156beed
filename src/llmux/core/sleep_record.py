"""What has been seen of a model while it was off the GPU."""

from dataclasses import dataclass, field

from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Evicting, State, Stuck


@dataclass(slots=True)
class SleepRecord:
    """Host memory of one model's sleeping engine, and where that cannot go on to."""

    held_mib: int = 0
    """Host memory that it holds asleep, or is about to, as far as known; always ``footprint_mib(state)``."""
    measured_mib: dict[Eviction, int] = field(default_factory=dict)
    """What its processes held the last time that it slept in each way."""
    refused: set[Eviction] = field(default_factory=set)
    """Deeper evictions that the present engine was to take asleep, and that have left it as it was."""

    def footprint_mib(self, state: State) -> int:
        """Host memory that the model holds asleep in a state, or will when it has left; 0 while unknown."""
        match state:
            case Asleep(eviction=asleep) | Evicting(asleep=Eviction() as asleep) | Stuck(asleep=Eviction() as asleep):
                return self.expected_mib(asleep) or 0
            case Evicting(eviction=eviction):
                return self.expected_mib(eviction) or 0
            case _:
                return 0

    def expected_mib(self, eviction: Eviction) -> int | None:
        """What it would hold of host memory after it has left so; None until that has been measured."""
        return self.measured_mib.get(eviction) if eviction.stays_in_memory else 0
