"""Waiting for an engine to become healthy."""

from collections.abc import Iterator

import pytest

from llmux.errors import ControlCallFailed
from llmux.instances import health
from llmux.instances.health import wait_until_healthy


class Starting:
    """The endpoints of an engine that answers after a number of refusals."""

    def __init__(self, refusals: int) -> None:
        self.left: Iterator[int] = iter(range(refusals))

    async def get_apart(self, path: str, timeout_seconds: float) -> None:
        if next(self.left, None) is not None:
            raise ControlCallFailed(f"GET {path}", "connection refused")


async def test_a_long_start_is_reported_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(health, "REPORT_SECONDS", 0.0)
    reported: list[float] = []
    await wait_until_healthy(Starting(3), reported.append)  # type: ignore[arg-type]
    assert len(reported) == 3
    assert reported == sorted(reported)


async def test_a_short_start_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "POLL_SECONDS", 0.0)
    reported: list[float] = []
    await wait_until_healthy(Starting(3), reported.append)  # type: ignore[arg-type]
    assert reported == []
