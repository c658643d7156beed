"""Whether an engine fits into memory. The rest of a restore is tested with the checkpointer and the real criu."""

from types import SimpleNamespace

import pytest

from llmux.checkpoints import restoring

GIB = 1 << 30


def test_an_engine_that_does_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring.psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB))
    assert restoring.lack_of_memory(GIB) is None
    assert restoring.lack_of_memory(2 * GIB) == "it needs 2.00 GiB of memory, of which 1.00 GiB are free"
