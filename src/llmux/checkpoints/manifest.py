"""The manifest of an image. It is written last: an image that has one is complete."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import msgspec

from llmux.errors import ImageUnusable

FORMAT = 1
NAME = "manifest.json"
DRAFT = "manifest.json.draft"
NOT_LISTED = frozenset({NAME, DRAFT, "dump.log", "restore.log", "begun.json", "stats-dump", "stats-restore"})
"""Files that change after the manifest is written, or that a restore does not need."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FINGERPRINT_KEY = "identity"
"""The key of ``Manifest.fingerprint`` in the file, of format 1."""


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """One of the GPUs that an engine saw."""

    name: str
    """Its model."""
    uuid: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What llmux must know about an image beyond criu's own files."""

    model: str
    argv: tuple[str, ...]
    fingerprint: str
    """Of how the engine was started, from ``fingerprint.fingerprint_of``."""
    port: int
    steps: tuple[str, ...]
    """What was done to the engine before the dump, in order; the engine encodes and undoes it."""
    eviction: str
    has_frozen: bool
    """Requests were in flight: a second restore would answer them twice."""
    pid: int
    pids: tuple[int, ...]
    tids: tuple[int, ...]
    groups: tuple[int, ...]
    pipes: tuple[int, int]
    """Inodes of the engine's stdout and stderr."""
    gpu_processes: int
    temporary_directory: str | None
    shared_memory: Mapping[str, str]
    """The file within the image by name in /dev/shm."""
    firewall_tables: tuple[str, ...]
    criu_version: str
    created_at: float
    """In seconds since the epoch."""
    files: Mapping[str, int]
    """Sizes in bytes of all other files, by path within the image."""
    kernel: str
    boot_id: str
    is_durable: bool
    """All files were synced to the disk: the image survives a crash of the machine."""
    canary: str | None = None
    """The engine's answer to the canary after its start."""
    suspended: tuple[int, ...] = ()
    """The processes whose GPU memory llmux had moved to host memory before the dump, and moves back after a restore."""
    gpus: tuple[GpuIdentity, ...] | None = None
    """The GPUs that the engine saw; None if they could not be read."""
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """The total size of all files."""
        return sum(self.files.values())

    @property
    def required_ids(self) -> frozenset[int]:
        """Ids of processes, threads, process groups and sessions that must be free for a restore."""
        return frozenset({*self.pids, *self.tids, *self.groups})

    def with_leftovers(self, shared_memory: Mapping[str, str], firewall_tables: Iterable[str]) -> Self:
        """A copy with what criu left outside its images directory."""
        return replace(self, shared_memory=dict(shared_memory), firewall_tables=tuple(sorted(firewall_tables)))

    def completed(self, image: Path) -> Self:
        """A copy with the sizes of the finished image's files.

        criu writes a ``core-TID.img`` per thread: threads that started after the inspection are added as well.
        """
        files = list_files(image)
        tids = {int(name[5:-4]) for name in files if name.startswith("core-") and name[5:-4].isdigit()}
        return replace(self, files=files, tids=tuple(sorted(tids | set(self.tids))))


def kernel_release() -> str:
    """The running kernel. criu's images of one kernel may not restore on another."""
    return platform.release()


def boot_id() -> str:
    """An id that changes with every boot of the machine."""
    return BOOT_ID.read_text().strip()


def list_files(image: Path) -> dict[str, int]:
    """Sizes of the image's regular files, without logs and the manifest."""
    return {
        str(path.relative_to(image)): path.stat().st_size
        for path in sorted(image.rglob("*"))
        if path.is_file() and not path.is_symlink() and str(path.relative_to(image)) not in NOT_LISTED
    }


def write_manifest(image: Path, manifest: Manifest) -> None:
    """Write the manifest atomically, replacing an older one; raises OSError."""
    document = asdict(manifest)
    document[FINGERPRINT_KEY] = document.pop("fingerprint")
    # Not msgspec: arguments may hold bytes that are not UTF-8 (lone surrogates), which it refuses to encode.
    text = json.dumps(document, indent=1, sort_keys=True)
    draft = image / DRAFT
    draft.write_text(text + "\n")
    draft.rename(image / NAME)


def read_manifest(image: Path, *, verify: bool = True) -> Manifest:
    """Read the manifest and ``verify`` the image's files against it; raises ImageUnusable."""
    try:
        document = json.loads((image / NAME).read_text())
        found = document["format"]
    except FileNotFoundError:
        reason = "it has no manifest: it was made by something else than llmux, or is incomplete"
        raise ImageUnusable(image, reason if image.is_dir() else "there is no such directory") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ImageUnusable(image, f"its manifest cannot be read ({error})") from error
    if found != FORMAT:
        raise ImageUnusable(image, f"its format is {found!r} and this llmux reads {FORMAT}")
    document["fingerprint"] = document.pop(FINGERPRINT_KEY, None)
    try:
        manifest = msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise ImageUnusable(image, f"its manifest is not as it should be ({error})") from error
    if verify:
        check_files(image, manifest)
    return manifest


def check_files(image: Path, manifest: Manifest) -> None:
    """Compare the sizes of the files with the manifest; raises ImageUnusable.

    With a truncated file criu does not fail but loops for ever.
    """
    for name, size in manifest.files.items():
        try:
            found = os.stat(image / name).st_size  # noqa: PTH116
        except OSError as error:
            raise ImageUnusable(image, f"its file {name} cannot be read ({error.strerror})") from error
        if found != size:
            raise ImageUnusable(image, f"its file {name} has {found} bytes instead of {size}")


def check_origin(image: Path, manifest: Manifest, criu_version: str) -> None:
    """Refuse images of another kernel or criu, or that a reboot may have damaged; raises ImageUnusable."""
    if manifest.kernel != kernel_release():
        raise ImageUnusable(image, f"it was made on the kernel {manifest.kernel}, and this is {kernel_release()}")
    if manifest.criu_version != criu_version:
        raise ImageUnusable(image, f"it was made by criu {manifest.criu_version}, and this is {criu_version}")
    if manifest.boot_id != boot_id() and not manifest.is_durable:
        raise ImageUnusable(image, "the machine was started anew before all of it was on the disk for sure")


def check_gpus(image: Path, manifest: Manifest, present: Sequence[GpuIdentity]) -> None:
    """Refuse an image that was made on more GPUs, or on other models of them; raises ImageUnusable.

    What is in GPU memory fits only the GPU that it was made for. ``present`` is empty where no GPU can be read; then
    nothing is refused.
    """
    if not manifest.gpus or not present:
        return
    if len(present) < len(manifest.gpus):
        raise ImageUnusable(
            image, f"it was made on {len(manifest.gpus)} GPUs, and the engine would have {len(present)}"
        )
    for made_on, now in zip(manifest.gpus, present, strict=False):
        if made_on.name != now.name:
            raise ImageUnusable(image, f"it was made on a GPU {made_on.name}, and this is a {now.name}")
