"""Fixtures for every test, and the plugins that report tests left out."""

import pytest

from tests.support.forked import close_nursery
from tests.support.skips import watch_skips


def pytest_configure(config: pytest.Config) -> None:
    watch_skips(config)
    config.add_cleanup(close_nursery)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
