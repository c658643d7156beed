"""Checkpoints and CUDA suspend: criu, its plugin, the directory of images."""

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from llmux.checkpoints.criu import inspect_criu
from llmux.checkpoints.dumping import is_in_memory
from llmux.checkpoints.images import check_owner
from llmux.checkpoints.object_store import ObjectStore, StoreFailed
from llmux.config.settings import CheckpointSettings, ObjectStoreSettings, Settings
from llmux.core.eviction import Process
from llmux.diagnosis.findings import Finding, error, ok, unknown, warning
from llmux.engines.files import exists
from llmux.errors import ConfigError, CriuUnusable, ImageUnusable
from llmux.hosts.local import size_mib
from llmux.server.images import open_object_store, store_address

GIB = 1 << 30
PLUGIN = "cuda_plugin.so"
BINDING = "cuda.bindings"
ACTION = "--action"
"""The option of cuda-checkpoint that llmux and criu's plugin call."""
PROGRAM_SECONDS = 10.0
"""For ``cuda-checkpoint --help``, which needs no GPU."""
STORE_SECONDS = 15.0
"""For one listing, which takes some tenths of a second."""


def check_images(settings: Settings | None, *, has_gpu: bool) -> Iterator[Finding]:
    """Whether engines can be dumped and restored, as far as that is configured; else whether they could be."""
    checkpoint = CheckpointSettings() if settings is None or settings.checkpoint is None else settings.checkpoint
    is_needed = settings is not None and settings.needs_criu
    yield _criu(checkpoint, is_needed=is_needed)
    if settings is not None and is_needed:
        yield _directory(settings, checkpoint.images_dir)
    if settings is not None and checkpoint.object_store is not None:
        yield from _store(settings, checkpoint.object_store)
    suspends = settings is not None and any(
        settings.eviction_of(name).process is Process.CUDA_SUSPEND for name in settings.models
    )
    if has_gpu or suspends:
        yield _suspension(checkpoint, is_needed=suspends)
        if is_needed:
            yield _plugin(checkpoint)


def _criu(checkpoint: CheckpointSettings, *, is_needed: bool) -> Finding:
    try:
        criu = inspect_criu(checkpoint.criu_path, checkpoint.cuda_plugin_dir)
    except CriuUnusable as refusal:
        reason = str(refusal)
        if is_needed:
            remedy = "install criu 4.2 or later and run llmux with the rights it needs, or use another eviction"
            return error("criu", reason, remedy)
        return unknown("criu", f"{reason} (no model needs it)")
    return ok("criu", f"{criu.version} at {criu.program}, network lock {criu.network_lock}")


def _directory(settings: Settings, directory: Path) -> Finding:
    what = f"images_dir {directory}"
    existing = next(one for one in (directory, *directory.absolute().parents) if exists(one))
    if not os.access(existing, os.W_OK | os.X_OK):
        return error(what, f"{existing} cannot be written to", "choose another directory, or change its owner")
    if existing == directory:
        try:
            check_owner(directory, directory)
        except ImageUnusable as refusal:
            return error(what, refusal.reason, "choose a directory that only llmux's user can write to")
    stat = os.statvfs(existing)
    free_bytes = stat.f_bavail * stat.f_frsize
    weights = {
        name: size_mib(settings.engine_of(name).weight_files()) << 20
        for name in settings.models
        if settings.eviction_of(name).process is Process.CHECKPOINT
    }
    size = f"{free_bytes / GIB:.1f} GiB free"
    if free_bytes < sum(weights.values()):
        wanted = sum(weights.values()) / GIB
        remedy = "choose a larger disk, or discard+checkpoint, whose images do not hold the weights"
        return warning(what, f"{size}, and the weights of the models with images take {wanted:.1f} GiB", remedy)
    if is_in_memory(existing):
        return warning(what, f"{size}, in memory: images compete with engines for it", "choose a directory on a disk")
    return ok(what, size)


def _store(settings: Settings, configured: ObjectStoreSettings) -> Iterator[Finding]:
    address = store_address(configured).url
    what = f"object store {address}"
    try:
        store = open_object_store(settings, configured)
    except ConfigError:
        # One of the configuration's findings.
        return
    remedy = "check its address, its keys and the network; without it, images stay on this machine"
    try:
        asyncio.run(_ask(store))
    except StoreFailed as failure:
        yield error(what, failure.reason, remedy)
    except TimeoutError:
        yield error(what, f"does not answer within {STORE_SECONDS:g} s", remedy)
    else:
        yield ok(what, "answers")


async def _ask(store: ObjectStore) -> None:
    async with asyncio.timeout(STORE_SECONDS):
        await store.list_folders("llmux-doctor")


def _suspension(checkpoint: CheckpointSettings, *, is_needed: bool) -> Finding:
    what = "CUDA suspend"
    program = shutil.which(checkpoint.cuda_checkpoint_path)
    help_text = "" if program is None else _help_of(program)
    version = re.search(r"Version (\d[\d.]*\d)", help_text)
    described = f"{program}, {f'version {version[1]}' if version else 'of a version that cannot be read'}"
    if _has_binding():
        return ok(what, "by the driver's API (cuda-bindings)" + (f" or {described}" if program else ""))
    if program is not None and help_text and ACTION not in help_text:
        reason = f"{described}, knows no {ACTION}, which came with driver 555"
        remedy = "get a newer one from github.com/NVIDIA/cuda-checkpoint, or pip install 'llmux-gateway[cuda]'"
        return error(what, reason, remedy) if is_needed else unknown(what, f"{reason} (no model needs it)", remedy)
    if program is not None:
        return ok(what, f"by {described}")
    reason = f"neither the package cuda-bindings nor the program {checkpoint.cuda_checkpoint_path!r} is there"
    remedy = "pip install 'llmux-gateway[cuda]', or put cuda-checkpoint on PATH"
    return error(what, reason, remedy) if is_needed else unknown(what, f"{reason} (no model needs it)", remedy)


def _help_of(program: str) -> str:
    """What ``--help`` prints; empty if it does not run here."""
    try:
        told = subprocess.run(
            [program, "--help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROGRAM_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout + told.stderr


def _has_binding() -> bool:
    try:
        # Found, and not imported: that would load the driver's library.
        return importlib.util.find_spec(BINDING) is not None
    except ModuleNotFoundError:
        return False


def _plugin(checkpoint: CheckpointSettings) -> Finding:
    what = "criu's CUDA plugin"
    plugin = checkpoint.cuda_plugin_dir / PLUGIN
    if not exists(plugin):
        return ok(what, f"there is no {plugin}: llmux suspends CUDA processes itself before a dump")
    if shutil.which("cuda-checkpoint") is None:
        remedy = "put cuda-checkpoint on PATH, or remove the plugin, so that llmux suspends them itself"
        return error(
            what, f"{plugin} is there, and the program cuda-checkpoint, which it calls, is not on PATH", remedy
        )
    return ok(what, f"{plugin}, which suspends CUDA processes during a dump")
