import errno

import pytest

from llmux.instances import late_imports
from llmux.instances.late_imports import until_imported


async def test_an_import_is_tried_again_while_there_are_no_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_imports, "SHORTAGE_POLL_SECONDS", 0.0)
    failures = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, "Too many open files in system")]

    async def load() -> None:
        if failures:
            raise failures.pop()

    await until_imported(load)
    assert not failures


async def test_another_failure_is_raised() -> None:
    async def load() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        await until_imported(load)
