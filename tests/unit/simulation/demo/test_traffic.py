"""Calls are made at their times and each is accounted for, also when the traffic is cut short."""

import asyncio
from contextlib import suppress

from aiohttp import web

from llmux.simulation.demo.records import Call, Ending, Kind
from llmux.simulation.demo.traffic import Traffic
from llmux.simulation.engine.text import expected_text


async def start(answer: object) -> tuple[web.ServerRunner, str]:
    runner = web.ServerRunner(web.Server(answer))  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


def call(number: int) -> Call:
    return Call(number * 0.001, "llama", Kind.COMPLETION, f"Question {number}", 3)


async def test_every_call_is_made_and_recorded() -> None:
    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        text = expected_text(body["model"], body["prompt"], body["max_tokens"])
        return web.json_response({"choices": [{"text": text, "finish_reason": "length"}]})

    runner, url = await start(answer)
    traffic = Traffic(call(number) for number in range(20))
    await traffic.run(url)
    await runner.cleanup()
    assert traffic.all_sent
    assert (traffic.sent, traffic.open, traffic.count(Ending.ANSWERED)) == (20, 0, 20)


async def test_what_is_open_at_the_end_was_cut_short() -> None:
    both_came, over = asyncio.Event(), asyncio.Event()
    came = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal came
        came += 1
        if came == 2:
            both_came.set()
        await over.wait()
        return web.Response()

    runner, url = await start(answer)
    traffic = Traffic([call(0), call(1), Call(60.0, "llama", Kind.CHAT, "late", 3)])
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(traffic.run(url))
        async with asyncio.timeout(10):
            await both_came.wait()
        assert traffic.open == 2
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    over.set()
    await runner.cleanup()
    assert (traffic.sent, traffic.open, traffic.all_sent) == (2, 0, False)
    assert traffic.count(Ending.CUT_SHORT) == 2
