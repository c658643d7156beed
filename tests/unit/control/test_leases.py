"""GPU leases over HTTP, a line for each change, over the real scheduler."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from llmux.core.settings import Limits
from llmux.instances.leased_program import LEASE_VARIABLE
from tests.support.control import DEADLINE_SECONDS, ControlApi, control_api
from tests.support.scripted import model


class Lines:
    """What one holder is told."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def next(self, state: str) -> Any:
        """The next line that names this state."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while line := await self._answer.content.readline():
                document = json.loads(line)
                if document["state"] == state:
                    return document
        raise AssertionError(f"the lease is over, and was never {state}")


@asynccontextmanager
async def lease(api: ControlApi, **body: Any) -> AsyncIterator[Lines]:
    """A lease that is asked for, until the end of the block closes its connection."""
    async with api.session.post(f"{api.url}/control/leases", json={"command": "train", **body}) as answer:
        assert answer.status == 200, await answer.text()
        yield Lines(answer)


async def leases(api: ControlApi) -> list[dict[str, Any]]:
    return list((await api.call("GET", "/control/leases")).document["gpu_leases"])


async def test_a_lease_is_told_of_every_change_and_is_over_with_its_connection() -> None:
    async with control_api(model("a")) as api:
        async with lease(api) as first:
            held = await first.next("held")
            assert held["environment"].keys() == {LEASE_VARIABLE}
            assert held["max_seconds"] is None
            async with lease(api) as second:
                waiting = await second.next("waiting")
                assert waiting["waits"]["text"] == "waits for GPU lease 1 to end"
                assert [one["state"] for one in await leases(api)] == ["held", "waiting"]
            await api.until(lambda: len(api.runtime.gpu_leases.leases()) == 1)
            assert (await api.call("DELETE", "/control/leases/1")).status == 200
            assert (await first.next("ending"))["reason"] == "the operator has ended it"
        await api.until(lambda: api.runtime.gpu_leases.leases() == ())
        assert (await api.call("DELETE", "/control/leases/1")).status == 404


async def test_requests_wait_for_a_lease_and_are_told_so() -> None:
    async with control_api(model("a")) as api:
        async with lease(api) as one:
            await one.next("held")
            holder = api.runtime.ask("a")
            waits = (await api.status())["models"]["a"]["waits"]
            assert waits == {"for": "gpu_lease", "text": "waits for GPU lease 1 to end", "lease": "GPU lease 1"}
        await holder.wait("admitted")
        api.runtime.access.cancel(holder.request)


async def test_the_client_s_name_for_its_command_is_made_harmless() -> None:
    async with control_api(model("a")) as api, lease(api, command="x\x1b[31m\ny") as one:
        await one.next("held")
        assert [entry["command"] for entry in await leases(api)] == ["x?[31m?y"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"command": ""},
        {"command": "x", "gpu_memory_mib": 0},
        {"command": "x", "gpus": 0},
        {"command": "x", "wait_seconds": 0},
        {"command": "x", "max_seconds": -1},
    ],
)
async def test_bodies_that_make_no_sense_are_refused(body: dict[str, Any]) -> None:
    async with control_api(model("a")) as api:
        answer = await api.post("leases", **body)
        assert answer.status == 422
        assert "the body does not fit" in answer.document["error"]


async def test_a_full_queue_and_a_mode_refuse_at_once() -> None:
    async with control_api(model("a"), limits=Limits(gpu_leases_max=1)) as api:
        async with lease(api):
            full = await api.post("leases", command="x")
            assert full.status == 503
            assert "at most 1 GPU leases at a time" in full.document["error"]
        await api.until(lambda: api.runtime.gpu_leases.leases() == ())
        await api.post("mode", mode="manual")
        manual = await api.post("leases", command="x")
        assert (manual.status, "manual mode" in manual.document["error"]) == (503, True)


async def test_a_lease_needs_the_admin_key() -> None:
    async with control_api(model("a"), admin_key="secret") as api:
        assert (await api.post("leases", command="x")).status == 401
        assert (await api.call("GET", "/control/leases")).status == 401
        assert (await api.call("DELETE", "/control/leases/1")).status == 401
