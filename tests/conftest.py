"""Fixtures that every test may use, and the watch over skips."""

import pytest

from tests.support.skips import watch_skips


def pytest_configure(config: pytest.Config) -> None:
    watch_skips(config)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
