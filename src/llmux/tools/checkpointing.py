"""Creates a model's image ahead of time, and restores an engine that then runs on without llmux."""

from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from llmux.checkpoints.checkpointer import Checkpointer
from llmux.checkpoints.image_transfers import ImageTransfers
from llmux.core.eviction import Eviction
from llmux.errors import LlmuxError
from llmux.tools.standalone import Memory, OnProgress, StandaloneEngine, WakeFailed

MIB = 1 << 20


class CheckpointFailed(LlmuxError):
    """No image was created."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no image was made: {reason}")


class UploadFailed(LlmuxError):
    """An image was created, and is not in the object store."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the image is in {path}, but could not be uploaded: {reason}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An image that was created."""

    model: str
    path: Path
    size_mib: int
    eviction: Eviction
    start_seconds: float
    seconds: float
    """From the engine awake to the image safely on the disk."""
    before: Memory
    after: Memory
    answer: str | None
    stored_at: str | None = None
    """The address of the model's images in the object store; None without one."""
    upload_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """An engine that was restored and runs on by itself."""

    model: str
    path: Path
    seconds: float
    port: int
    pid: int
    shim_pid: int
    """SIGTERM to it stops the engine with everything that belongs to it."""
    memory: Memory
    answer: str


async def make_checkpoint(
    engine: StandaloneEngine,
    checkpointer: Checkpointer,
    eviction: Eviction,
    on_progress: OnProgress,
    *,
    warms_up: bool = True,
    transfers: ImageTransfers | None = None,
) -> Checkpoint:
    """Start the engine, ask it once if it is to warm up, and put it into its image; raises LlmuxError.

    The image is safely on the disk when this returns, and with ``transfers`` in the object store.
    """
    model = engine.instance.spec.model
    await checkpointer.check()
    on_progress("starting the engine")
    began_at = monotonic()
    WakeFailed.raise_for(await engine.instance.wake())
    started_at = monotonic()
    answer = await engine.ask() if warms_up else None
    before = await engine.measure()
    on_progress("putting it into its image")
    dumping_at = monotonic()
    outcome = await engine.instance.evict(eviction)
    if reason := outcome.error or outcome.deviation_from(eviction):
        raise CheckpointFailed(str(reason))
    path = checkpointer.image_path(model)
    on_progress("waiting until the image is on the disk")
    try:
        await checkpointer.make_durable(path)
    except OSError as error:
        raise CheckpointFailed(f"{path} could not be written to the disk: {error}") from error
    seconds, upload_seconds = monotonic() - dumping_at, None
    if transfers is not None:
        uploading_at = monotonic()
        try:
            await transfers.upload(model, path, on_progress)
        except (LlmuxError, OSError) as error:
            raise UploadFailed(path, str(error)) from error
        upload_seconds = monotonic() - uploading_at
    return Checkpoint(
        model=model,
        path=path,
        size_mib=checkpointer.read(path).size_bytes // MIB,
        eviction=eviction,
        start_seconds=started_at - began_at,
        seconds=seconds,
        before=before,
        after=await engine.measure(),
        answer=answer,
        stored_at=None if transfers is None else transfers.address(model),
        upload_seconds=upload_seconds,
    )


async def restore_to_stay(engine: StandaloneEngine, checkpointer: Checkpointer, on_progress: OnProgress) -> Restored:
    """Restore the engine, ask it once, and let it outlive llmux; raises LlmuxError."""
    instance = engine.instance
    await checkpointer.check()
    path = checkpointer.image_path(instance.spec.model)
    on_progress(f"restoring from {path}")
    began_at = monotonic()
    WakeFailed.raise_for(await instance.wake())
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
