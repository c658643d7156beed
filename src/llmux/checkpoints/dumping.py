"""What surrounds criu's own work in a dump: checks before it, completing the image after it, undoing a failed one."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from llmux.checkpoints import copying, firewall, images, shared_memory
from llmux.checkpoints.criu import Criu
from llmux.checkpoints.facts import ImageFacts
from llmux.checkpoints.manifest import Manifest, boot_id, kernel_release, write_manifest
from llmux.checkpoints.processes import ProcessTree, inspect_tree
from llmux.errors import DumpFailed
from llmux.hosts.local import find_descendants

MARGIN_BYTES = 64 << 20
"""For everything in an image beside memory: 30 MB for a small server, 64 MB leaves a margin."""
GIB = 1 << 30
FULL_BYTES = 1 << 20
"""Less than that is free after a write has failed for want of space: criu writes more than a page at a time."""
UNDUMPABLE_SHOWN = 3


class Dumpable(Protocol):
    """What a dump needs of a running engine."""

    @property
    def pid(self) -> int:
        """The engine's root process."""

    @property
    def shim_pid(self) -> int | None:
        """The parent of the root, and of descendants that have left it; None before the start."""

    @property
    def pipes(self) -> tuple[int, int]:
        """Inodes of the engine's stdout and stderr."""

    @property
    def temporary_directory(self) -> Path | None:
        """The engine's own temporary directory."""

    @property
    def is_dumped(self) -> bool:
        """Whether the engine is in an image instead of running."""

    async def dump(self, argv: Sequence[str], timeout_seconds: float) -> None:
        """Run criu's command line; raises DumpFailed.

        Cancelled, it stops criu and returns once it is known whether the engine runs on or ``is_dumped``.
        """

    async def release(self) -> None:
        """After a successful dump: give up what is left of the engine, such as its temporary directory."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """The engine's state just before criu's dump."""

    tree: ProcessTree
    shared_inodes: frozenset[int]
    """Its files in /dev/shm."""
    remapped: frozenset[str]
    """criu's names in /dev/shm, which belong to others."""
    size_bytes: int
    """Estimated size of the image."""


def prepare(process: Dumpable, new: Path) -> Preparation:
    """Inspect the engine; raises DumpFailed for what would make criu fail later, or the image incomplete."""
    tree = inspect_tree(process.pid)
    if tree.undumpable:
        raise DumpFailed(f"criu cannot dump {', '.join(tree.undumpable[:UNDUMPABLE_SHOWN])}")
    descendants = set() if process.shim_pid is None else {one.pid for one in find_descendants(process.shim_pid)}
    if strays := descendants - set(tree.pids):
        raise DumpFailed(f"the process {min(strays)} of the engine has left its root, and would not be in the image")
    inodes = shared_memory.find_used_inodes(tree.pids)
    size_bytes = tree.memory_bytes + shared_memory.find_size(inodes)
    if reason := lack_of_disk(new, size_bytes):
        raise DumpFailed(reason)
    remapped = shared_memory.list_remapped()
    images.note_start(new, remapped, shared_memory.find_names(inodes))
    return Preparation(tree, inodes, remapped, size_bytes)


def describe(process: Dumpable, facts: ImageFacts, preparation: Preparation, criu: Criu) -> Manifest:
    """The manifest of the engine's image, without its files."""
    directory = process.temporary_directory
    return Manifest(
        model=facts.model,
        argv=facts.argv,
        fingerprint=facts.fingerprint,
        port=facts.port,
        steps=facts.steps,
        eviction=str(facts.eviction),
        has_frozen=facts.has_frozen,
        pid=process.pid,
        pids=preparation.tree.pids,
        tids=preparation.tree.tids,
        groups=preparation.tree.groups,
        pipes=process.pipes,
        gpu_processes=preparation.tree.gpu_processes,
        temporary_directory=None if directory is None else str(directory),
        shared_memory={},
        firewall_tables=(),
        criu_version=criu.version,
        created_at=time.time(),
        files={},
        kernel=kernel_release(),
        boot_id=boot_id(),
        canary=facts.canary,
        suspended=facts.suspended,
        gpus=facts.gpus,
        is_durable=False,
    )


def complete(new: Path, manifest: Manifest, preparation: Preparation) -> Manifest:
    """Add what criu left outside the image, write the manifest, and move the image to its path.

    Raises OSError; then nothing is left outside the image.
    """
    try:
        names = shared_memory.move_into_image(new, preparation.shared_inodes, preparation.remapped)
        if manifest.temporary_directory is not None:
            copying.save_temporary_directory(new, Path(manifest.temporary_directory))
        manifest = manifest.with_leftovers(names, firewall.find_tables(new / images.DUMP_LOG)).completed(new)
        write_manifest(new, manifest)
        images.finish(new)
    except BaseException:
        undo(new, preparation)
        shared_memory.remove_unused(shared_memory.find_names(preparation.shared_inodes))
        raise
    return manifest


def undo(new: Path, preparation: Preparation) -> None:
    """Remove what a criu that failed or was killed left outside the image; raises OSError."""
    shared_memory.remove(shared_memory.list_remapped() - preparation.remapped)
    firewall.remove_tables(firewall.find_tables(new / images.DUMP_LOG))


def lack_of_disk(directory: Path, image_bytes: int) -> str | None:
    """Why an image of this size cannot be written to the directory; None if it can."""
    stat = os.statvfs(directory)
    needed = image_bytes + MARGIN_BYTES
    free = stat.f_bavail * stat.f_frsize
    if free < needed:
        return f"the image needs {needed / GIB:.2f} GiB in {directory}, where {free / GIB:.2f} GiB are free"
    # The engine's memory is freed only after criu has written all of it.
    if is_in_memory(directory) and (available := psutil.virtual_memory().available) < needed:
        return (
            f"the image needs {needed / GIB:.2f} GiB in {directory}, "
            f"that is in memory, of which {available / GIB:.2f} GiB are free"
        )
    return None


def describe_full_disk(directory: Path) -> str | None:
    """That the directory's disk is full, as far as a failed dump has filled it; None if it is not."""
    stat = os.statvfs(directory)
    is_full = stat.f_bavail * stat.f_frsize < FULL_BYTES
    return f"No space left on device: the disk of {directory} is full" if is_full else None


def is_in_memory(directory: Path) -> bool:
    """Whether files in the directory take up memory instead of disk."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1] in ("tmpfs", "ramfs")
    return False
