"""Builds what concerns images of engines from the section ``checkpoint``. The server imports it where there is one."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from llmux.checkpoints.checkpointer import Checkpointer, CriuSettings
from llmux.checkpoints.image_transfers import ImageTransfers
from llmux.checkpoints.object_store import ObjectStore, StoreAddress, StoreUnusable, open_store
from llmux.config.settings import Compression, ObjectStoreSettings, Settings
from llmux.core.eviction import Process
from llmux.core.identifiers import GpuId
from llmux.errors import ConfigError, Problem
from llmux.gpus.nvml import gpu_models
from llmux.instances.checkpoint_store import CheckpointStore
from llmux.instances.image_budget import ImageBudget
from llmux.server.build import build_redactor


def build_checkpointer(settings: Settings, images_directory: Path | None = None) -> Checkpointer | None:
    """The checkpointer, None if the section ``checkpoint`` is absent. ``images_directory`` overrides its directory."""
    checkpoint = settings.checkpoint
    if checkpoint is None:
        return None
    directory = images_directory or checkpoint.images_dir
    gpus = gpu_models() if checkpoint.object_store is not None else ""
    return Checkpointer(CriuSettings(checkpoint.criu_path, checkpoint.cuda_plugin_dir, directory, gpus=gpus))


def require_checkpointer(settings: Settings) -> Checkpointer:
    """The checkpointer. Raises ConfigError if the section ``checkpoint`` is absent."""
    checkpointer = build_checkpointer(settings)
    if checkpointer is None:
        raise ConfigError(
            [
                Problem(
                    "checkpoint", "the section is missing, and images need it", "add 'checkpoint: {}' for its defaults"
                )
            ]
        )
    return checkpointer


def build_transfers(
    settings: Settings, checkpointer: Checkpointer | None, on_stored: Callable[[], None] = lambda: None
) -> ImageTransfers | None:
    """The transfers to and from the object store, None if none is configured.

    Raises ConfigError if obstore is missing or does not take what is configured. Nothing is asked of the store yet.
    """
    if checkpointer is None or settings.checkpoint is None or (store := settings.checkpoint.object_store) is None:
        return None
    opened, address = open_object_store(settings, store), store_address(store)
    compresses = store.compression is Compression.ZSTD or (
        store.compression is Compression.AUTO and not address.is_directory
    )
    return ImageTransfers(
        opened,
        address.url,
        checkpointer,
        compresses=compresses,
        download_seconds=store.download_timeout_seconds,
        on_stored=on_stored,
    )


def object_store_problems(settings: Settings) -> Sequence[Problem]:
    """Why ``build_transfers`` would fail."""
    store = None if settings.checkpoint is None else settings.checkpoint.object_store
    try:
        if store is not None:
            open_object_store(settings, store)
    except ConfigError as error:
        return error.problems
    return ()


def open_object_store(settings: Settings, store: ObjectStoreSettings) -> ObjectStore:
    """The object store, without a request to it. Raises ConfigError if it cannot be used as it is configured."""
    try:
        return open_store(store_address(store), build_redactor(settings).redact)
    except StoreUnusable as error:
        remedy = error.remedy or "correct the keys of checkpoint.object_store"
        raise ConfigError([Problem("checkpoint.object_store", error.reason, remedy)]) from error


def store_address(store: ObjectStoreSettings) -> StoreAddress:
    """Where the object store is, in obstore's terms."""
    if store.url is not None:
        allows_http = any(value.startswith("http://") for value in store.options.values())
        return StoreAddress(store.url, store.options, allows_http=allows_http)
    assert store.endpoint is not None and store.access_key is not None and store.secret_key is not None
    options = {
        "endpoint": store.endpoint,
        "access_key_id": store.access_key.get_secret_value(),
        "secret_access_key": store.secret_key.get_secret_value(),
        "region": store.region,
        "virtual_hosted_style_request": "false",
    }
    return StoreAddress(f"s3://{store.bucket}", options, allows_http=store.endpoint.startswith("http://"))


def build_image_budget(
    settings: Settings, stores: Mapping[str, CheckpointStore], changed: asyncio.Event
) -> ImageBudget | None:
    """What keeps the images within ``images_budget``, whenever ``changed`` is set; None without a limit."""
    limit_bytes = None if settings.checkpoint is None else settings.checkpoint.images_budget
    return None if limit_bytes is None else ImageBudget(stores, limit_bytes, changed)


def build_checkpoint_stores(
    settings: Settings,
    checkpointer: Checkpointer | None,
    gpus: Mapping[GpuId, int],
    transfers: ImageTransfers | None = None,
    on_change: Callable[[], None] = lambda: None,
) -> dict[str, CheckpointStore]:
    """Each model's store of images; none without a checkpointer. ``gpus``: what ``find_gpus`` has found."""
    if checkpointer is None or settings.checkpoint is None:
        return {}
    keep = settings.checkpoint.keep_images
    return {
        name: CheckpointStore(
            checkpointer,
            name,
            keep=keep,
            configured=model.checkpoint_path,
            transfers=transfers,
            # An image comes back on the GPUs that it was made on, and a first start where the scheduler has made room.
            starts_from_image=settings.eviction_of(name).process is Process.CHECKPOINT and len(gpus) == 1,
            on_change=on_change,
        )
        for name, model in settings.models.items()
    }
