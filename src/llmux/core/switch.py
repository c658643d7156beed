"""A switch: models leave the GPU, then another one is woken in their place."""

from dataclasses import dataclass

from llmux.core.actions import SwitchDone
from llmux.core.identifiers import Seconds


@dataclass(slots=True)
class Switch:
    """A switch that has been decided, and how far it has come.

    Its target's memory is reserved until the wake begins; from then on the target holds it. The phases follow each
    other: drain (the victims finish what they have in flight), evict, wake. Only ``switching`` makes switches and
    takes them through their phases.
    """

    target: str
    victims: tuple[str, ...]
    """Models that leave first, each for this switch alone; replaced by ``replan`` if their leaving was not enough."""
    wanted_at: Seconds
    """When the switch was first wanted. It begins later where a victim had to stay for a while."""
    drain_began_at: Seconds
    evict_began_at: Seconds | None = None
    wake_began_at: Seconds | None = None

    @property
    def is_waking(self) -> bool:
        """Whether the wake has begun, after which nothing calls the switch off."""
        return self.wake_began_at is not None

    def begin_evicting(self, now: Seconds) -> None:
        """A victim is leaving; only the first call counts."""
        if self.evict_began_at is None:
            self.evict_began_at = now

    def begin_waking(self, now: Seconds) -> None:
        """The memory is free."""
        assert self.wake_began_at is None
        self.wake_began_at = now

    def replan(self, victims: tuple[str, ...]) -> None:
        """Others have to leave too; the phases go on being counted from where they are."""
        assert self.wake_began_at is None
        self.victims = victims

    def forget(self, victims: tuple[str, ...]) -> None:
        """These had left and come back, and leave for another switch now."""
        for victim in victims:
            if victim in self.victims:
                self.victims = tuple(one for one in self.victims if one not in victims)
                return

    def retry(self, sleeper: str) -> "Switch":
        """The same switch once more, after ``sleeper`` has left too: the wake ran out of GPU memory."""
        return Switch(self.target, (*self.victims, sleeper), self.wanted_at, self.drain_began_at)

    def done(self, now: Seconds) -> SwitchDone:
        """The report of a switch whose target serves now."""
        wake_began_at = self.wake_began_at if self.wake_began_at is not None else now
        evict_began_at = self.evict_began_at if self.evict_began_at is not None else wake_began_at
        return SwitchDone(
            previous=self.victims[0] if self.victims else "",
            model=self.target,
            cooldown_seconds=self.drain_began_at - self.wanted_at,
            drain_seconds=evict_began_at - self.drain_began_at,
            sleep_seconds=wake_began_at - evict_began_at,
            wake_seconds=now - wake_began_at,
        )
