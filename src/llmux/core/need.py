"""How much of each of its GPUs a model needs, and how that is known."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from llmux.core.eviction import Eviction

GROWTH_SHARE = 0.05
"""Added to what an engine was seen to hold. Most engines allocate nearly all of it at their start; what comes later are
workspaces of libraries and the cache of PyTorch's allocator. It also keeps a need from changing with every few MiB."""
CORRECTION_SHARE = 0.01
"""The same where something is said, and the engine holds more: it has a bound then, and goes over it by what it does
not count, as CUDA's context. More would keep models apart that were told to share a GPU to its last GiB."""


class NeedSource(StrEnum):
    """How it is known what a model needs, the best first."""

    DECLARED = "declared"
    """The configuration says it."""
    ARGUMENTS = "arguments"
    """The engine's arguments say how much it takes."""
    MEASURED = "measured"
    """Its engine was seen to hold so much."""
    UNKNOWN = "unknown"
    """It has its GPUs to itself until it has been measured."""


@dataclass(frozen=True, slots=True)
class SaidNeed:
    """What the configuration and the engine's arguments say: an amount, or a share of each GPU's memory."""

    source: NeedSource = NeedSource.UNKNOWN
    mib: int = 0
    share: float = 1.0

    def on(self, total_mib: int) -> int:
        """The need on a GPU with so much memory, in MiB; all of it if nothing is said."""
        return self.mib or int(self.share * total_mib)


@dataclass(frozen=True, slots=True)
class SeenNeed:
    """What an engine was seen to hold, in MiB, of that of its GPUs of which it held most."""

    awake_mib: int = 0
    """The most that was ever seen; 0: not seen yet."""
    residue_mib: Mapping[Eviction, int] = field(default_factory=dict)
    """What it still held after each eviction that keeps its process, when that was measured last."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a model needs of one GPU."""

    mib: int
    source: NeedSource
    said_mib: int | None = None
    """What the configuration or the arguments say, where the engine was seen to hold more."""


def need_on(total_mib: int, said: SaidNeed, seen: SeenNeed) -> Need:
    """What a model needs of a GPU with so much memory: what is said, or what was seen where that is more or all."""
    said_mib = said.on(total_mib)
    if not seen.awake_mib:
        return Need(said_mib, said.source)
    # It cannot need more than there is: then it is alone there, as one whose need is unknown.
    if said.source is NeedSource.UNKNOWN:
        return Need(min(total_mib, int(seen.awake_mib * (1 + GROWTH_SHARE))), NeedSource.MEASURED)
    if seen.awake_mib <= said_mib:
        return Need(said_mib, said.source)
    return Need(min(total_mib, int(seen.awake_mib * (1 + CORRECTION_SHARE))), NeedSource.MEASURED, said_mib)
