"""Fixtures for every test, and the plugins that report tests left out."""

import pytest

from tests.support.fork_server import close_fork_server
from tests.support.skips import watch_skips


def pytest_configure(config: pytest.Config) -> None:
    watch_skips(config)
    config.add_cleanup(close_fork_server)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
