"""criu's firewall tables in the real kernel."""

import os
from collections.abc import Iterator

import pytest
from pyroute2.nftables.main import NFTables

from llmux.checkpoints import firewall
from tests.support.real_criu import CRIU, SKIP_REASON

pytestmark = [pytest.mark.criu, pytest.mark.skipif(not CRIU, reason=SKIP_REASON)]

NOBODY = 65534


@pytest.fixture
def tables() -> Iterator[list[str]]:
    """Two tables as criu makes them, which are deleted at the end."""
    names = [f"CRIU-llmux-{number}-{os.getpid()}" for number in (1, 2)]
    with NFTables(nfgen_family=firewall.NFPROTO_INET) as nftables:
        for name in names:
            nftables.table("add", name=name)
    yield names
    firewall.remove_tables(names)


def test_tables_are_listed_and_deleted(tables: list[str]) -> None:
    assert firewall.list_tables() >= set(tables)
    firewall.remove_tables([tables[0]])
    assert firewall.list_tables() & set(tables) == {tables[1]}
    firewall.remove_tables(tables)
    assert not firewall.list_tables() & set(tables)


def test_without_the_right_to_it_nothing_is_listed_and_deletion_is_refused_at_once(tables: list[str]) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with pytest.raises(PermissionError):
                firewall.remove_tables(tables)
            os._exit(len(firewall.list_tables()))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert firewall.list_tables() >= set(tables)
