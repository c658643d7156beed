"""Which models' requests are waited for at a switch though nobody asked for it, what that costs, and what helps."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmux.config.model import Pin
from llmux.config.policy import FREEZING
from llmux.config.settings import Settings
from llmux.core.eviction import Drain
from llmux.errors import Problem

NAMES_MAX = 5
"""How many models a sentence names."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Models whose requests cannot be frozen, for one reason."""

    models: tuple[str, ...]
    why: str
    cost: str
    remedy: str

    def __str__(self) -> str:
        more = len(self.models) - NAMES_MAX
        names = ", ".join(self.models[:NAMES_MAX]) + (f" and {more} more" if more > 0 else "")
        return f"{names}: {self.why}, so {self.cost}"

    @property
    def advice(self) -> Problem:
        """The same, as advice about the configuration."""
        return Problem("models", str(self), self.remedy)


def cost_of_draining(settings: Settings) -> str:
    """What it means for others that a model is waited for."""
    return (
        "a switch waits until its answers have ended while others wait for the GPU, "
        f"for at most {settings.drain_timeout_seconds:g} s"
    )


def drained(settings: Settings) -> Iterator[Drained]:
    """The models that would be frozen by default and cannot be. None where only one model could take turns."""
    policy = settings.policy
    if policy.policy_type not in FREEZING or policy.drain_before_switch is not None:
        return
    taking_turns = [name for name, model in settings.models.items() if _takes_turns(settings, name, model.pin)]
    found: dict[tuple[str, str], list[str]] = {}
    for name in taking_turns if len(taking_turns) > 1 else ():
        if settings.models[name].drain is None and settings.drain_of(name) is Drain.WAIT:
            found.setdefault(_why_and_remedy(settings, name), []).append(name)
    for (why, remedy), names in found.items():
        yield Drained(tuple(names), why, cost_of_draining(settings), remedy)


def _takes_turns(settings: Settings, name: str, pin: Pin | None) -> bool:
    return settings.engine_of(name).uses_gpu and pin is not Pin.KEEP


def _why_and_remedy(settings: Settings, name: str) -> tuple[str, str]:
    engine, eviction = settings.engine_of(name), settings.eviction_of(name)
    meant = "'drain: wait' says that this is meant"
    keeping = [str(other) for other in engine.evictions() if engine.can_keep_requests(other)]
    if not keeping:
        return f"an engine of the kind {engine.kind} cannot suspend its requests", meant
    return f"{eviction} cannot keep its requests", f"an 'eviction' that can: {', '.join(keeping)}; or {meant}"
