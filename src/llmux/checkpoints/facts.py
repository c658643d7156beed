"""What is known of an engine that is about to be dumped, beside what its processes show."""

from dataclasses import dataclass

from llmux.checkpoints.manifest import GpuIdentity
from llmux.core.eviction import Eviction


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What only the caller knows about the engine in an image; written to the manifest as it is."""

    model: str
    port: int
    fingerprint: str
    steps: tuple[str, ...]
    """What was done to the engine before the dump, as words; the engine undoes it after a restore."""
    eviction: Eviction
    has_frozen: bool
    """The engine has requests in flight."""
    argv: tuple[str, ...]
    canary: str | None = None
    suspended: tuple[int, ...] = ()
    """The processes whose GPU memory is in host memory."""
    gpus: tuple[GpuIdentity, ...] | None = None
    """The GPUs that the engine sees, if they can be read."""
