"""Connections to the control plane that come while its HTTP server is still being imported."""

import asyncio
from contextlib import suppress
from functools import partial

from llmux.core.settings import ModelSpec
from tests.support.control import HOST, ControlApi, control_api


def calls_on_all_ports(api: ControlApi) -> list["asyncio.Future[int]"]:
    async def status(method: str, path: str, port: int | None, **more: object) -> int:
        return (await api.call(method, path, port=port, **more)).status

    ports = [
        ("GET", "/control/status", None, {}),
        ("POST", "/control/mode", None, {"json": {"mode": "manual"}}),
        ("GET", "/control/leases", api.admin_port, {}),
        ("GET", "/metrics", api.metrics_port, {}),
    ]
    return [
        asyncio.ensure_future(status(method, path, port, **more))  # noqa: TID251 - a client of its own
        for method, path, port, more in ports
    ]


async def test_they_are_answered_as_soon_as_it_is_there() -> None:
    async with control_api(ModelSpec("a"), is_loaded=False) as api:
        calls = calls_on_all_ports(api)
        await api.until(lambda: api.server.waiting_count == len(calls))
        assert not any(call.done() for call in calls)
        await api.server.load()
        assert await asyncio.gather(*calls) == [200] * len(calls)
        assert (await api.status())["mode"] == {"mode": "manual"}
        assert (await api.call("GET", "/metrics", port=api.metrics_port)).status == 200
        assert api.server.waiting_count == 0


async def test_one_that_has_gone_meanwhile_is_passed_over() -> None:
    async with control_api(ModelSpec("a"), is_loaded=False) as api:
        left, *calls = calls_on_all_ports(api)
        await api.until(lambda: api.server.waiting_count == len(calls) + 1)
        left.cancel()
        await asyncio.wait([left])
        await api.server.load()
        assert await asyncio.gather(*calls) == [200] * len(calls)


async def test_they_are_closed_if_the_server_ends_before() -> None:
    async with control_api(ModelSpec("a"), is_loaded=False) as api:
        readers = []
        for count, port in enumerate((api.port, api.admin_port, api.metrics_port), 1):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await api.until(partial(lambda count: api.server.waiting_count == count, count))
            readers.append((reader, writer))
        await api.server.close()
        for reader, writer in readers:
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
