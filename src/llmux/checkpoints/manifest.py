"""What an image says of itself: written last, so that an image that has a manifest is complete."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import msgspec

from llmux.errors import ImageUnusable

FORMAT = 1
NAME = "manifest.json"
DRAFT = "manifest.json.draft"
NOT_LISTED = frozenset({NAME, DRAFT, "dump.log", "restore.log", "begun.json", "stats-dump", "stats-restore"})
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about an image that is not in criu's own files."""

    model: str
    argv: tuple[str, ...]
    identity: str
    """Fingerprint of how the engine was started."""
    port: int
    steps: tuple[str, ...]
    """What was done to the engine before, and has to be undone after a restore, as words."""
    eviction: str
    has_frozen: bool
    """Requests were in flight: the image is good for one restore."""
    pid: int
    pids: tuple[int, ...]
    tids: tuple[int, ...]
    groups: tuple[int, ...]
    pipes: tuple[int, int]
    """Inodes of the engine's stdout and stderr."""
    gpu_processes: int
    temporary_directory: str | None
    shared_memory: Mapping[str, str]
    """Names in /dev/shm, each with the file of the image that it is a name of."""
    firewall_tables: tuple[str, ...]
    criu_version: str
    created_at: float
    """Seconds of Unix time."""
    files: Mapping[str, int]
    """Every other file of the image, by its path, with its size in bytes."""
    kernel: str
    boot_id: str
    is_durable: bool
    """It was written to the disk for sure, and outlasts a machine that loses its power."""
    canary: str | None = None
    """What the engine answered to the canary's question when it had just been started."""
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(self.files.values())

    @property
    def numbers(self) -> frozenset[int]:
        """All numbers of processes, threads, groups and sessions that have to be free for a restore."""
        return frozenset({*self.pids, *self.tids, *self.groups})

    def with_leftovers(self, shared_memory: Mapping[str, str], firewall_tables: Iterable[str]) -> Self:
        """The manifest with what criu left outside the image."""
        return replace(self, shared_memory=dict(shared_memory), firewall_tables=tuple(sorted(firewall_tables)))

    def completed(self, image: Path) -> Self:
        """The manifest with what the finished image's files tell: their sizes, and its threads."""
        files = list_files(image)
        tids = {int(name[5:-4]) for name in files if name.startswith("core-") and name[5:-4].isdigit()}
        return replace(self, files=files, tids=tuple(sorted(tids | set(self.tids))))


def kernel_release() -> str:
    """The kernel that runs: criu's images of one are not for another."""
    return platform.release()


def boot_id() -> str:
    """The name of this machine's run since it was switched on."""
    return BOOT_ID.read_text().strip()


def list_files(image: Path) -> dict[str, int]:
    """The image's regular files but for logs and the manifest, with their sizes."""
    return {
        str(path.relative_to(image)): path.stat().st_size
        for path in sorted(image.rglob("*"))
        if path.is_file() and not path.is_symlink() and str(path.relative_to(image)) not in NOT_LISTED
    }


def write_manifest(image: Path, manifest: Manifest) -> None:
    """Write it down, in the place of another one if there is one; raises OSError."""
    # Not msgspec: arguments may hold bytes that are not UTF-8 (lone surrogates).
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True)
    draft = image / DRAFT
    draft.write_text(text + "\n")
    draft.rename(image / NAME)


def read_manifest(image: Path, *, whole: bool = True) -> Manifest:
    """Read it, and check that the image is ``whole``; raises ImageUnusable."""
    try:
        document = json.loads((image / NAME).read_text())
        written = document["format"]
    except FileNotFoundError:
        there = "it has no manifest: it was made by something else than llmux, or is incomplete"
        raise ImageUnusable(image, there if image.is_dir() else "there is no such directory") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ImageUnusable(image, f"its manifest cannot be read ({error})") from error
    if written != FORMAT:
        raise ImageUnusable(image, f"its format is {written!r} and this llmux reads {FORMAT}")
    try:
        manifest = msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise ImageUnusable(image, f"its manifest is not as it should be ({error})") from error
    if whole:
        check_files(image, manifest)
    return manifest


def check_files(image: Path, manifest: Manifest) -> None:
    """Compare the files with the manifest: with a part missing criu may never end. Raises ImageUnusable."""
    for name, size in manifest.files.items():
        try:
            found = os.stat(image / name).st_size  # noqa: PTH116
        except OSError as error:
            raise ImageUnusable(image, f"its file {name} cannot be read ({error.strerror})") from error
        if found != size:
            raise ImageUnusable(image, f"its file {name} has {found} bytes instead of {size}")


def check_origin(image: Path, manifest: Manifest, criu_version: str) -> None:
    """Refuse images of another kernel or criu, or that a reboot may have spoilt; raises ImageUnusable."""
    if manifest.kernel != kernel_release():
        raise ImageUnusable(image, f"it was made on the kernel {manifest.kernel}, and this is {kernel_release()}")
    if manifest.criu_version != criu_version:
        raise ImageUnusable(image, f"it was made by criu {manifest.criu_version}, and this is {criu_version}")
    if manifest.boot_id != boot_id() and not manifest.is_durable:
        raise ImageUnusable(image, "the machine was started anew before all of it was on the disk for sure")
