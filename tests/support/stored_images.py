"""Images on disk without a criu, and what is in an object store, for tests of transfers."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmux.checkpoints.manifest import Manifest, boot_id, kernel_release, write_manifest
from llmux.checkpoints.object_store import ObjectStore
from llmux.checkpoints.stored_image import Origin
from llmux.checkpoints.transfer import Lanes, upload

FINGERPRINT = "f" * 64
CRIU_VERSION = "4.2.1"
ORIGIN = Origin(FINGERPRINT, kernel_release(), CRIU_VERSION, "cpu")
MANIFEST = Manifest(
    model="m",
    argv=("engine", b"\xff".decode(errors="surrogateescape")),
    fingerprint=FINGERPRINT,
    port=8000,
    steps=("sleep 2",),
    eviction="discard+checkpoint",
    has_frozen=False,
    pid=10,
    pids=(10,),
    tids=(10,),
    groups=(10,),
    pipes=(100, 101),
    gpu_processes=0,
    temporary_directory=None,
    shared_memory={},
    firewall_tables=("CRIU-4132960d-9796-4242-a4",),
    criu_version=CRIU_VERSION,
    created_at=1.5,
    files={},
    kernel=kernel_release(),
    boot_id=boot_id(),
    is_durable=True,
)


def make_image(path: Path, contents: dict[str, bytes], **facts: Any) -> Manifest:
    """A complete image with these files."""
    path.mkdir(mode=0o700, parents=True)
    for name, content in contents.items():
        (path / name).parent.mkdir(exist_ok=True, parents=True)
        (path / name).write_bytes(content)
    manifest = replace(MANIFEST, **facts).completed(path)
    write_manifest(path, manifest)
    return manifest


def make_rich_image(path: Path) -> Manifest:
    """An image with everything that can be in one: large and small files, holes, links, pipes, odd names and modes."""
    manifest = make_image(
        path,
        {
            "pages-1.img": os.urandom(35 << 20),
            "core-10.img": b"core" * 100,
            "empty.img": b"",
            "tmp/deep/note": b"kept",
            "tmp/\N{SNOWMAN} #?%41": b"odd",
            "dump.log": b"no part of it",
        },
    )
    (path / "shm").mkdir()
    with (path / "shm" / "psm_1").open("wb") as sparse:
        sparse.truncate(1 << 30)
        sparse.seek(500 << 20)
        sparse.write(b"shared")
    with open(os.fsencode(path / "tmp") + b"/\xff", "wb") as odd:  # noqa: PTH123
        odd.write(b"not UTF-8")
    (path / "tmp" / "link").symlink_to("deep/note")
    os.mkfifo(path / "tmp" / "pipe", 0o620)
    (path / "tmp" / "deep" / "note").chmod(0o640)
    os.utime(path / "tmp" / "deep", ns=(10**18, 10**18))
    manifest = manifest.completed(path)
    write_manifest(path, manifest)
    return manifest


async def stored(store: ObjectStore, image: Path, generation: str, origin: Origin = ORIGIN, **options: Any) -> Any:
    """Upload an image without a queue around it."""
    lanes = Lanes()
    try:
        return await upload(store, image, origin, generation, lanes, lambda size: None, lambda size: None, **options)
    finally:
        lanes.close()


async def keys_in(store: ObjectStore, prefix: str = "m") -> list[str]:
    """All keys below the prefix."""
    return sorted([found.key async for found in store.list_objects(prefix)])
