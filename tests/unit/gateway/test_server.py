"""The gateway's periodic sweep."""

from types import SimpleNamespace

import pytest

from llmux.gateway.options import GatewayOptions
from llmux.gateway.server import Gateway
from tests.support.access import FakeAccess


async def test_after_a_pause_of_llmux_itself_what_has_arrived_is_read_before_deadlines_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("llmux.gateway.server.time", SimpleNamespace(monotonic=lambda: now[0]))
    gateway = Gateway(FakeAccess(), GatewayOptions(), lambda work: None)
    sweeps: list[float] = []
    monkeypatch.setattr(type(gateway._state), "sweep", lambda state, at: sweeps.append(at))
    for seconds in (1.0, 15.0, 1.0):
        now[0] += seconds
        gateway._sweep_timer.cancel()
        gateway._sweep()
    assert sweeps == [1001.0, 1017.0]
    await gateway.close(0.0)
