"""An image as it lies in an object store: the names of its objects, and the manifest that describes them.

``MODEL/images/KEY/GENERATION/`` holds one upload: ``part-00000`` and so on, and ``manifest.json``, written last. KEY is
a digest of what an image must have in common with the machine that restores it, so that machines which differ never see
each other's images. Nothing that is there is ever changed: who publishes at the same time publishes two generations,
each complete.

A part holds pieces of one or more files: what they contain without their holes, at most ``PART_BYTES``. Small files
share a part, since an image has hundreds of them and each request takes tens of milliseconds. Files are no objects of
their own for another reason, too: names in an engine's temporary directory can be any bytes.
"""

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from pathlib import Path

import msgspec

from llmux.checkpoints import manifest as local
from llmux.checkpoints.copying import find_data
from llmux.errors import LlmuxError

FORMAT = 1
FOLDER = "images"
"""0.7.7's, below the model's name."""
MANIFEST = "manifest.json"
PART_BYTES = 16 << 20
MANIFEST_LIMIT_BYTES = 64 << 20
"""A manifest has about 200 bytes for each 16 MiB of an image, and 100 for each file."""
CPU_INFO = Path("/proc/cpuinfo")


class EntryKind(StrEnum):
    """What an image's directory can contain."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    PIPE = "pipe"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory, link or named pipe of an image."""

    path: str
    """Within the image. A name's bytes that are not UTF-8 are escaped as Python does it."""
    kind: EntryKind
    mode: int
    modified_ns: int
    size_bytes: int = 0
    target: str = ""
    """Of a link."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a file."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Part:
    """An object: the pieces one after the other, perhaps compressed."""

    name: str
    pieces: tuple[Piece, ...]
    stored_bytes: int = 0
    sha256: str = ""
    """Of the object as it is stored."""
    is_compressed: bool = False

    @property
    def content_bytes(self) -> int:
        """The length of the pieces together."""
        return sum(piece.length for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Origin:
    """What an image must have in common with the machine and the configuration that restore it."""

    fingerprint: str
    kernel: str
    criu_version: str
    cpu: str
    """A digest of the processor's features: programs choose their code by them, once, at their start."""
    gpus: str = ""
    """The models of the machine's GPUs."""

    @property
    def key(self) -> str:
        """A name for objects."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A generation's manifest."""

    model: str
    origin: Origin
    generation: str
    image: str
    """The text of the image's own manifest."""
    entries: tuple[Entry, ...]
    """Directories before what is in them."""
    parts: tuple[Part, ...]
    format: int = FORMAT

    @property
    def content_bytes(self) -> int:
        """What the image's files hold, without holes."""
        return sum(part.content_bytes for part in self.parts)

    @property
    def stored_bytes(self) -> int:
        """The size of the parts in the store."""
        return sum(part.stored_bytes for part in self.parts)


class StoredImageBroken(LlmuxError):
    """What is stored cannot be the image that was uploaded."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the stored image cannot be used: {reason}")


def images_prefix(model: str) -> str:
    """Where the images of a model are."""
    return f"{model}/{FOLDER}"


def prefix_of(model: str, origin: Origin) -> str:
    """Where the generations of a model's image are for machines and configurations like this."""
    return f"{images_prefix(model)}/{origin.key}"


def new_generation() -> str:
    """A name that sorts after those of earlier generations, as far as the machines' clocks agree, and is unique."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"


def encode(manifest: StoredManifest) -> bytes:
    """The manifest as it is stored."""
    # Not msgspec: paths may hold bytes that are not UTF-8 (lone surrogates), which it refuses to encode.
    return json.dumps(asdict(manifest), separators=(",", ":")).encode()


def decode(content: bytes | memoryview, model: str, origin: Origin, generation: str) -> StoredManifest:
    """The manifest, with all that decides what is written to the disk checked; raises StoredImageBroken."""
    try:
        document = json.loads(bytes(content))
        found = document["format"]
        if found != FORMAT:
            raise StoredImageBroken(f"its format is {found!r} and this llmux reads {FORMAT}")
        manifest = msgspec.convert(document, StoredManifest)
    except (ValueError, LookupError, TypeError, msgspec.ValidationError) as error:
        raise StoredImageBroken(f"its manifest is not as it should be ({error})") from error
    if (manifest.model, manifest.origin, manifest.generation) != (model, origin, generation):
        raise StoredImageBroken("its manifest belongs to another image")
    if wrong := next(_find_wrong(manifest), None):
        raise StoredImageBroken(wrong)
    return manifest


def _find_wrong(manifest: StoredManifest) -> Iterator[str]:
    sizes = {}
    directories = {"."}
    for entry in manifest.entries:
        name = entry.path
        parent = os.path.dirname(name) or "."  # noqa: PTH120
        if name in sizes or name in directories or not _is_inside(name) or parent not in directories:
            yield f"its entry {name!r} cannot be within an image"
        if entry.kind is EntryKind.DIRECTORY:
            directories.add(name)
        sizes[name] = entry.size_bytes if entry.kind is EntryKind.FILE else -1
    for part in manifest.parts:
        for piece in part.pieces:
            if piece.offset < 0 or piece.length < 0 or piece.offset + piece.length > sizes.get(piece.path, -1):
                yield f"a part of {piece.path!r} does not lie within it"
        if part.content_bytes > PART_BYTES or not _is_inside(part.name) or "/" in part.name:
            yield f"its part {part.name!r} is none of llmux's"


def _is_inside(path: str) -> bool:
    return "\0" not in path and not any(word in ("", ".", "..") for word in path.split("/"))


def list_entries(image: Path) -> tuple[Entry, ...]:
    """What is in the image's directory, without its manifest and what criu logs; raises OSError."""
    return tuple(_entries_below(image, ""))


def _entries_below(directory: Path, prefix: str) -> Iterator[Entry]:
    with os.scandir(directory) as found:
        ordered = sorted(found, key=lambda entry: entry.name)
    for entry in ordered:
        path = prefix + entry.name
        status = entry.stat(follow_symlinks=False)
        mode, modified_ns = stat.S_IMODE(status.st_mode), status.st_mtime_ns
        if stat.S_ISDIR(status.st_mode):
            yield Entry(path, EntryKind.DIRECTORY, mode, modified_ns)
            yield from _entries_below(Path(entry.path), path + "/")
        elif stat.S_ISREG(status.st_mode):
            if path not in local.NOT_LISTED:
                yield Entry(path, EntryKind.FILE, mode, modified_ns, status.st_size)
        elif stat.S_ISLNK(status.st_mode):
            yield Entry(path, EntryKind.LINK, mode, modified_ns, target=str(Path(entry.path).readlink()))
        elif stat.S_ISFIFO(status.st_mode):
            yield Entry(path, EntryKind.PIPE, mode, modified_ns)


def plan_parts(image: Path, entries: Sequence[Entry]) -> tuple[Part, ...]:
    """How the files' contents are cut into parts; raises OSError."""
    parts: list[Part] = []
    pieces: list[Piece] = []
    room = PART_BYTES
    for entry in entries:
        for start, end in _ranges(image, entry):
            at = start
            while at < end:
                length = min(end - at, room)
                pieces.append(Piece(entry.path, at, length))
                at += length
                room -= length
                if room == 0:
                    parts.append(Part(f"part-{len(parts):05}", tuple(pieces)))
                    pieces, room = [], PART_BYTES
    if pieces:
        parts.append(Part(f"part-{len(parts):05}", tuple(pieces)))
    return tuple(parts)


def _ranges(image: Path, entry: Entry) -> list[tuple[int, int]]:
    if entry.kind is not EntryKind.FILE or entry.size_bytes == 0:
        return []
    with (image / entry.path).open("rb") as file:
        return find_data(file.fileno(), entry.size_bytes)


@cache
def cpu_features() -> str:
    """A digest of the features of this machine's processors, which an image cannot do without."""
    found = {
        line.partition(":")[2].strip()
        for line in CPU_INFO.read_text(errors="replace").splitlines()
        if line.startswith(("flags", "Features", "vendor_id", "CPU implementer"))
    }
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()[:16]
