"""Waiting that outlasts a cancellation."""

import asyncio

import pytest

from llmux.cancellation import wait_uncancelled


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


async def test_a_cancellation_waits_for_the_work() -> None:
    work = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(wait_uncancelled(work))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        work.set_result(None)
    assert task.cancelled()


async def test_the_wait_for_the_work_has_a_limit() -> None:
    work = asyncio.get_running_loop().create_future()
    await wait_uncancelled(work, 0.01)
    assert not work.done()


async def test_a_failure_of_the_work_is_left_to_the_caller() -> None:
    work = asyncio.get_running_loop().create_future()
    work.set_exception(ValueError("the work's own"))
    await wait_uncancelled(work)
    with pytest.raises(ValueError, match="the work's own"):
        work.result()
