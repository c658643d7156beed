"""Fixtures for every test, and the plugins that report tests left out."""

import pytest

from tests.support.skips import watch_skips


def pytest_configure(config: pytest.Config) -> None:
    watch_skips(config)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
