"""Fixtures for every test, and the plugins that report tests left out."""

import os

import pytest

from tests.support.fork_server import close_fork_server
from tests.support.skips import watch_skips


def pytest_configure(config: pytest.Config) -> None:
    watch_skips(config)
    # Every engine imports aiohttp, which then reads the certificates of all authorities; nothing here speaks TLS.
    os.environ["SSL_CERT_FILE"] = os.devnull
    config.add_cleanup(close_fork_server)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
