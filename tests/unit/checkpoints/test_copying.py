import os
from pathlib import Path

import pytest

from llmux.checkpoints.copying import copy_sparse


@pytest.mark.parametrize(
    ("size", "parts"),
    [(0, {}), (10, {0: b"0123456789"}), (8 << 20, {}), (8 << 20, {1 << 20: b"in the midst", (8 << 20) - 4: b"tail"})],
)
def test_copy_is_equal_and_has_no_more_blocks(tmp_path: Path, size: int, parts: dict[int, bytes]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(size)
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)
    source.chmod(0o640)
    os.utime(source, ns=(1_000_000_000, 2_000_000_000))
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks
    assert target.stat().st_mode == source.stat().st_mode
    assert target.stat().st_mtime_ns == 2_000_000_000


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.write_text("old")
    with pytest.raises(FileExistsError):
        copy_sparse(source, target)
    assert target.read_text() == "old"
