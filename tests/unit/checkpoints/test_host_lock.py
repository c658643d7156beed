from pathlib import Path

import pytest

from llmux.checkpoints import host_lock


def test_one_at_a_time_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_lock, "DIRECTORY", tmp_path)
    with host_lock.opened_lock() as one:
        assert host_lock.try_lock(one)
        with host_lock.opened_lock() as two:
            assert not host_lock.try_lock(two)
    with host_lock.opened_lock() as two:
        assert host_lock.try_lock(two)
    assert list(tmp_path.iterdir()) == []
