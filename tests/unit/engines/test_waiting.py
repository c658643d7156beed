import asyncio

import pytest

from llmux.engines.waiting import outlast


async def test_cancellation_waits_for_the_work() -> None:
    work = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(outlast(work))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        work.set_result(None)
    assert task.cancelled()


async def test_limit() -> None:
    work = asyncio.get_running_loop().create_future()
    await outlast(work, 0.01)
    assert not work.done()


async def test_failure_of_the_work_is_left_to_the_caller() -> None:
    work = asyncio.get_running_loop().create_future()
    work.set_exception(ValueError("the work's own"))
    await outlast(work)
    with pytest.raises(ValueError, match="the work's own"):
        work.result()
