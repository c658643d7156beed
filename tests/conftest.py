"""Fixtures that every test may use, and the watch over tests that are left out."""

import pytest

from tests.support.skips import say_what_was_left_out, watch_skips


def pytest_configure(config: pytest.Config) -> None:
    watch_skips(config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    say_what_was_left_out(terminalreporter)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
