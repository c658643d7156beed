"""Making a model's image ahead of time, and bringing an engine back from it to stay without llmux."""

from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from llmux.checkpoints.checkpointer import Checkpointer
from llmux.core.eviction import Eviction
from llmux.errors import LlmuxError
from llmux.tools.standalone import Memory, StandaloneEngine, Tell

MIB = 1 << 20


class CheckpointFailed(LlmuxError):
    """No image was made."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no image was made: {reason}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An image that was made."""

    model: str
    path: Path
    size_mib: int
    eviction: Eviction
    start_seconds: float
    seconds: float
    """From the awake engine to the image on the disk."""
    before: Memory
    after: Memory
    answer: str | None


@dataclass(frozen=True, slots=True)
class Restored:
    """An engine that came from an image and stays."""

    model: str
    path: Path
    seconds: float
    port: int
    pid: int
    shim_pid: int
    """A SIGTERM to it ends the engine with all that belongs to it."""
    memory: Memory
    answer: str


async def make_checkpoint(
    engine: StandaloneEngine, imager: Checkpointer, eviction: Eviction, tell: Tell, *, warms_up: bool = True
) -> Checkpoint:
    """Start the engine, ask it once if it is to warm up, and put it into its image; raises LlmuxError.

    The image is on the disk for sure when this returns.
    """
    model = engine.instance.spec.model
    await imager.check()
    tell("starting the engine")
    began_at = monotonic()
    await engine.instance.wake()
    started_at = monotonic()
    answer = await engine.ask() if warms_up else None
    before = await engine.measure()
    tell("putting it into its image")
    dumping_at = monotonic()
    residency = await engine.instance.evict(eviction)
    if reason := engine.other_than(eviction, residency):
        raise CheckpointFailed(reason)
    path = imager.image_path(model)
    tell("waiting until the image is on the disk")
    try:
        await imager.make_durable(path)
    except OSError as error:
        raise CheckpointFailed(f"{path} could not be written to the disk: {error}") from error
    return Checkpoint(
        model=model,
        path=path,
        size_mib=imager.read(path).size_bytes // MIB,
        eviction=eviction,
        start_seconds=started_at - began_at,
        seconds=monotonic() - dumping_at,
        before=before,
        after=await engine.measure(),
        answer=answer,
    )


async def restore_to_stay(engine: StandaloneEngine, imager: Checkpointer, tell: Tell) -> Restored:
    """Bring the engine back from its image, ask it, and let it outlive llmux; raises LlmuxError."""
    instance = engine.instance
    await imager.check()
    path = imager.image_path(instance.spec.model)
    tell(f"restoring from {path}")
    began_at = monotonic()
    await instance.wake()
    seconds = monotonic() - began_at
    answer = await engine.ask()
    restored = Restored(
        model=instance.spec.model,
        path=path,
        seconds=seconds,
        port=instance.upstream.port,
        pid=instance.pid or 0,
        shim_pid=instance.shim_pid or 0,
        memory=await engine.measure(),
        answer=answer,
    )
    await instance.let_stay()
    return restored
