import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmux.checkpoints.manifest import (
    NAME,
    GpuIdentity,
    Manifest,
    boot_id,
    check_gpus,
    check_origin,
    kernel_release,
    read_manifest,
    write_manifest,
)
from llmux.errors import ImageUnusable

MANIFEST = Manifest(
    model="org/model",
    argv=("engine", "--name", b"\xff".decode(errors="surrogateescape")),
    fingerprint="1234",
    port=8000,
    steps=("sleep 1", "dump"),
    eviction="offload+checkpoint",
    has_frozen=False,
    pid=10,
    pids=(10, 11),
    tids=(10, 11, 12),
    groups=(10, 9),
    pipes=(100, 101),
    gpu_processes=1,
    temporary_directory="/tmp/engine",
    shared_memory={"psm_1": "psm_1"},
    firewall_tables=(),
    criu_version="4.2.1",
    created_at=1.5,
    files={},
    kernel=kernel_release(),
    boot_id=boot_id(),
    is_durable=False,
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "pages-1.img").write_bytes(b"x" * 100)
    (tmp_path / "core-13.img").write_bytes(b"x")
    (tmp_path / "dump.log").write_text("not a part of the image")
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm" / "psm_1").write_bytes(b"x" * 10)
    return tmp_path


def rewrite(image: Path, **changes: Any) -> None:
    document = json.loads((image / NAME).read_text())
    (image / NAME).write_text(json.dumps({**document, **changes}))


def test_a_manifest_is_read_as_it_was_written(image: Path) -> None:
    manifest = MANIFEST.completed(image)
    assert manifest.files == {"core-13.img": 1, "pages-1.img": 100, "shm/psm_1": 10}
    assert manifest.size_bytes == 111
    assert manifest.tids == (10, 11, 12, 13)
    assert manifest.required_ids == {9, 10, 11, 12, 13}
    write_manifest(image, manifest)
    assert read_manifest(image) == manifest
    assert json.loads((image / NAME).read_text())["identity"] == "1234", "as format 1 calls the fingerprint"


def test_leftovers_of_criu_are_added() -> None:
    manifest = MANIFEST.with_leftovers({"link_remap.1": "link_remap.1"}, {"CRIU-2", "CRIU-1"})
    assert manifest.shared_memory == {"link_remap.1": "link_remap.1"}
    assert manifest.firewall_tables == ("CRIU-1", "CRIU-2")


def test_an_image_without_a_manifest_is_refused(image: Path) -> None:
    with pytest.raises(ImageUnusable, match="made by something else than llmux, or is incomplete"):
        read_manifest(image)
    with pytest.raises(ImageUnusable, match="there is no such directory"):
        read_manifest(image / "missing")


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", "\xff"])
def test_a_damaged_manifest_is_refused(image: Path, text: str) -> None:
    (image / NAME).write_text(text, encoding="latin-1")
    with pytest.raises(ImageUnusable, match="its manifest cannot be read"):
        read_manifest(image)


def test_a_manifest_of_another_format_or_shape_is_refused(image: Path) -> None:
    write_manifest(image, MANIFEST.completed(image))
    rewrite(image, pid="ten")
    with pytest.raises(ImageUnusable, match="not as it should be.*pid"):
        read_manifest(image)
    rewrite(image, format=2)
    with pytest.raises(ImageUnusable, match="its format is 2 and this llmux reads 1"):
        read_manifest(image)


def test_files_that_are_missing_or_truncated_are_refused(image: Path) -> None:
    manifest = MANIFEST.completed(image)
    write_manifest(image, manifest)
    os.truncate(image / "pages-1.img", 50)
    with pytest.raises(ImageUnusable, match=r"pages-1.img has 50 bytes instead of 100"):
        read_manifest(image)
    (image / "pages-1.img").unlink()
    with pytest.raises(ImageUnusable, match=r"pages-1.img cannot be read .No such file"):
        read_manifest(image)
    assert read_manifest(image, verify=False) == manifest


def test_images_of_another_boot_kernel_or_criu_are_refused(image: Path) -> None:
    check_origin(image, MANIFEST, "4.2.1")
    check_origin(image, replace(MANIFEST, boot_id="another", is_durable=True), "4.2.1")
    with pytest.raises(ImageUnusable, match="started anew before all of it was on the disk"):
        check_origin(image, replace(MANIFEST, boot_id="another"), "4.2.1")
    with pytest.raises(ImageUnusable, match="made by criu 4.2.1, and this is 4.3"):
        check_origin(image, MANIFEST, "4.3")
    with pytest.raises(ImageUnusable, match="made on the kernel 5.0"):
        check_origin(image, replace(MANIFEST, kernel="5.0"), "4.2.1")


A100, H100 = GpuIdentity("NVIDIA A100", "GPU-1"), GpuIdentity("NVIDIA H100", "GPU-2")


def test_what_was_suspended_and_the_gpus_are_read_back(image: Path) -> None:
    written = replace(MANIFEST, suspended=(11,), gpus=(A100,)).completed(image)
    write_manifest(image, written)
    assert read_manifest(image) == written


def test_an_older_manifest_says_nothing_of_gpus(image: Path) -> None:
    write_manifest(image, MANIFEST.completed(image))
    document = json.loads((image / NAME).read_text())
    del document["suspended"], document["gpus"]
    (image / NAME).write_text(json.dumps(document))
    manifest = read_manifest(image)
    assert (manifest.suspended, manifest.gpus) == ((), None)
    check_gpus(image, manifest, [A100])


@pytest.mark.parametrize(
    ("made_on", "present", "reason"),
    [
        ((A100,), [A100], None),
        ((A100,), [replace(A100, uuid="GPU-9")], None),
        ((A100,), [A100, H100], None),
        ((A100,), [], None),
        ((A100,), [H100], "made on a GPU NVIDIA A100, and this is a NVIDIA H100"),
        ((A100, A100), [A100], "made on 2 GPUs, and the engine would have 1"),
        ((A100, A100), [A100, H100], "made on a GPU NVIDIA A100"),
    ],
)
def test_an_image_of_other_gpus_is_refused(
    image: Path, made_on: tuple[GpuIdentity, ...], present: list[GpuIdentity], reason: str | None
) -> None:
    manifest = replace(MANIFEST, gpus=made_on)
    if reason is None:
        check_gpus(image, manifest, present)
        return
    with pytest.raises(ImageUnusable, match=reason):
        check_gpus(image, manifest, present)
