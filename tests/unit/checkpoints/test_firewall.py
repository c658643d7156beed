"""criu's firewall tables, with a fake kernel; with the real one they are tested in tests/integration/criu."""

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import pytest
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables import main as nftables

from llmux.checkpoints import firewall


class Table:
    def __init__(self, name: str) -> None:
        self.name = name

    def get_attr(self, attribute: str) -> str:
        assert attribute == "NFTA_TABLE_NAME"
        return self.name


class Kernel:
    """Tables by name, and the error number with which each deletion or the listing is refused."""

    def __init__(self, *tables: str, listing_error: int = 0, deletion_errors: dict[str, int] | None = None) -> None:
        self.tables = list(tables)
        self.listing_error = listing_error
        self.deletion_errors = deletion_errors or {}
        self.deletions: list[str] = []
        self.family = 0
        self.answers = True

    def __call__(self, *, nfgen_family: int) -> Self:
        self.family = nfgen_family
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def get_tables(self) -> AsyncIterator[Table]:
        if not self.answers:
            await asyncio.Event().wait()
        if self.listing_error:
            raise NetlinkError(self.listing_error)
        return self._each()

    async def _each(self) -> AsyncIterator[Table]:
        for name in self.tables:
            yield Table(name)

    async def table(self, command: str, *, name: str) -> None:
        assert command == "del"
        self.deletions.append(name)
        if name in self.deletion_errors:
            raise NetlinkError(self.deletion_errors[name])
        self.tables.remove(name)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    fake = Kernel("filter", "CRIU-1", "CRIU-2", "CRIU-3")
    monkeypatch.setattr(nftables, "AsyncNFTables", fake)
    return fake


def test_only_tables_of_criu_are_listed(kernel: Kernel) -> None:
    assert firewall.list_tables() == {"CRIU-1", "CRIU-2", "CRIU-3"}
    assert kernel.family == 1


def test_a_kernel_that_refuses_to_list_has_no_tables(kernel: Kernel) -> None:
    kernel.listing_error = errno.EPERM
    assert firewall.list_tables() == frozenset()


def test_a_kernel_that_does_not_answer_has_no_tables(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "LIMIT_SECONDS", 0.01)
    kernel.answers = False
    assert firewall.list_tables() == frozenset()
    with pytest.raises(TimeoutError):
        firewall.remove_tables(["CRIU-1"])


def test_tables_that_are_gone_are_no_failure(kernel: Kernel) -> None:
    kernel.deletion_errors = {"CRIU-1": errno.ENOENT}
    firewall.remove_tables(["CRIU-0", "CRIU-1", "CRIU-2"])
    assert kernel.deletions == ["CRIU-1", "CRIU-2"]
    assert kernel.tables == ["filter", "CRIU-1", "CRIU-3"]


def test_a_refused_deletion_is_raised(kernel: Kernel) -> None:
    kernel.deletion_errors = {"CRIU-2": errno.EBUSY}
    with pytest.raises(OSError, match="busy"):
        firewall.remove_tables(["CRIU-1", "CRIU-2"])
    assert kernel.deletions == ["CRIU-1", "CRIU-2"]
    kernel.listing_error = errno.EPERM
    with pytest.raises(PermissionError):
        firewall.remove_tables(["CRIU-3"])


def test_without_names_the_kernel_is_not_asked(kernel: Kernel) -> None:
    kernel.listing_error = errno.EPERM
    firewall.remove_tables([])


def test_tables_of_one_dump(tmp_path: Path, kernel: Kernel) -> None:
    log = tmp_path / "dump.log"
    log.write_text("(00.000000) CRIU run id = 4132960d-9796-4242-a41e-9dc7b51b90da\n")
    ours = "CRIU-4132960d-9796-4242-a4"
    kernel.tables = [ours, "CRIU-5d063511-d555-4bb4-8e", "filter"]
    assert firewall.find_tables(log) == [ours]
    log.write_text("nothing\n")
    assert firewall.find_tables(log) == []
    assert firewall.find_tables(tmp_path / "missing") == []
