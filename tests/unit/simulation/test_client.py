"""The client tells a right answer from a wrong, a broken and an abandoned one, and accounts for every request."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest
from aiohttp import web

from llmux.simulation.client import Client, Expectation, LoadGenerator, Pauses, ResponseBroken, http_request, workflow
from llmux.simulation.engine.text import expected_text
from llmux.simulation.on_time import Progress
from llmux.simulation.traffic import Ending, RequestKind, RequestOutcome, TrafficRequest


def request_of(kind: RequestKind, *, at_seconds: float = 0.0, patience_seconds: float | None = None) -> TrafficRequest:
    return TrafficRequest(at_seconds, "llama", 1, 6, kind, "Hi", patience_seconds)


CHAT = request_of(RequestKind.CHAT)
STREAM = request_of(RequestKind.CHAT_STREAM)
COMPLETION = request_of(RequestKind.COMPLETION)
TRACED = TrafficRequest(0.0, "a", 7, 9)
RIGHT = expected_text("llama", "Hi", 6)
OF_ANOTHER_MODEL = expected_text("qwen", "Hi", 6)

EVENT = b'data: {"choices": [{"text": "x"}]}\n\n'
DONE = b"data: [DONE]\n\n"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _text(request: TrafficRequest) -> str:
    return expected_text(request.model, request.prompt, request.output_tokens)


TEXTS = Expectation(_text)


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[aiohttp.ClientSession]:
    runner = web.ServerRunner(web.Server(answer))  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


def whole(text: str, finish_reason: str = "length", status: int = 200) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        content = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        headers = {"x-llmux-queue-ms": "1500"}
        return web.json_response(
            {"choices": [{**content, "finish_reason": finish_reason}]}, status=status, headers=headers
        )

    return answer


def streamed(*events: object, done: bool = True) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ("data: [DONE]\n\n" if done else "")
        return web.Response(text=text, content_type="text/event-stream")

    return answer


def in_pieces(*pieces: bytes) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"x-llmux-queue-ms": "250"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    return answer


def chunk(text: str | None, finish_reason: str | None = None) -> object:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish_reason}]}


async def perform(
    session: aiohttp.ClientSession,
    request: TrafficRequest,
    *,
    expected: Expectation | None = TEXTS,
    time_limit_seconds: float | None = 60.0,
    arrived_at: float = 0.0,
) -> RequestOutcome:
    outcome = RequestOutcome(request, arrived_at)
    started_at = asyncio.get_running_loop().time() - arrived_at
    client = Client(
        session,
        started_at,
        expected=expected,
        time_limit_seconds=time_limit_seconds,
    )
    await client.send(outcome, *http_request(request, 1))
    return outcome


@pytest.mark.parametrize("request_", [CHAT, COMPLETION])
async def test_the_right_text_is_an_answer_and_its_wait_is_kept(request_: TrafficRequest) -> None:
    async with server(whole(RIGHT)) as session:
        outcome = await perform(session, request_)
    assert (outcome.ending, outcome.wait_seconds, outcome.problem) == (Ending.ANSWERED, 1.5, "")


@pytest.mark.parametrize("request_", [CHAT, COMPLETION])
async def test_another_models_text_is_wrong(request_: TrafficRequest) -> None:
    async with server(whole(OF_ANOTHER_MODEL)) as session:
        outcome = await perform(session, request_)
    assert outcome.ending is Ending.WRONG
    assert OF_ANOTHER_MODEL[:20] in outcome.problem


EMBEDDING = request_of(RequestKind.EMBEDDING)
IMAGE = request_of(RequestKind.IMAGE, patience_seconds=10.0)


@pytest.mark.parametrize(("vector", "ending"), [([0.5, -1.0], Ending.ANSWERED), ([0.5, 1.0], Ending.WRONG)])
async def test_an_embedding_is_compared(vector: list[float], ending: Ending) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert (request.path, await request.json()) == ("/v1/embeddings", {"model": "llama", "input": "Hi"})
        return web.json_response({"data": [{"index": 0, "embedding": vector}]}, headers={"x-llmux-queue-ms": "1500"})

    async with server(answer) as session:
        outcome = await perform(session, EMBEDDING, expected=Expectation(lambda _: [0.5, -1.0]))
    assert (outcome.ending, outcome.wait_seconds) == (ending, 1.5)


async def accept(request: web.Request) -> web.Response:
    assert (request.path, await request.json()) == ("/upstream/llama/prompt", {"prompt": workflow("Hi")})
    return web.json_response({"prompt_id": "7"})


async def test_a_prompt_is_answered_when_its_work_is_done() -> None:
    accepted, done = asyncio.Event(), asyncio.Event()

    async def result(prompt_id: str) -> bytes:
        assert prompt_id == "7"
        accepted.set()
        await done.wait()
        return b"a picture"

    async with server(accept) as session, asyncio.TaskGroup() as tasks:
        expected = Expectation(lambda _: b"a picture", result)
        sent = tasks.create_task(perform(session, IMAGE, expected=expected))
        await accepted.wait()
        assert not sent.done()
        done.set()
        assert (await sent).ending is Ending.ANSWERED


async def test_a_prompt_whose_work_is_not_done_is_lost() -> None:
    async def result(prompt_id: str) -> bytes:
        raise ResponseBroken(f"{prompt_id} was not painted")

    async with server(accept) as session:
        outcome = await perform(session, IMAGE, expected=Expectation(lambda _: b"", result))
    assert (outcome.ending, outcome.problem) == (Ending.LOST, "7 was not painted")


async def test_whoever_has_an_accepted_prompt_does_not_leave() -> None:
    """Its work goes on and must be accounted for, however short the client's patience is."""
    patience_seconds = 0.3
    impatient = request_of(RequestKind.IMAGE, patience_seconds=patience_seconds)

    async def result(_: str) -> bytes:
        await asyncio.sleep(2 * patience_seconds)
        return b"a picture"

    async with server(accept) as session:
        outcome = await perform(session, impatient, expected=Expectation(lambda _: b"a picture", result))
    assert outcome.ending is Ending.ANSWERED


async def test_a_stream_is_put_together() -> None:
    async with server(streamed(chunk(RIGHT[:9]), chunk(RIGHT[9:]), chunk(None, "length"))) as session:
        outcome = await perform(session, STREAM)
    assert outcome.ending is Ending.ANSWERED


def test_only_a_long_pause_between_tokens_is_noted() -> None:
    outcome = RequestOutcome(STREAM, 0.0)
    pauses = Pauses(outcome)
    for at, tokens in ((1.0, 1), (1.5, 1), (2.4, 2), (9.0, 1), (9.1, 2)):
        pauses.received(at, tokens)
    assert outcome.first_token_at == 1.0
    # The last piece is the engine's note of why it ended, and [DONE]: beyond the six tokens that were asked for.
    assert outcome.progress == (Progress(2.4, 4), Progress(9.0, 5))
    pauses.received(20.0, 2)
    assert outcome.progress[2:] == (Progress(9.1, 6), Progress(20.0, 6))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (streamed(chunk(RIGHT), done=False), "without \\[DONE\\]"),
        (streamed(chunk(RIGHT[:9]), {"error": {"message": "evicted"}}, done=False), "broke off: evicted"),
        (streamed(chunk(RIGHT), chunk("", "abort")), "aborted"),
        (streamed({"nothing": 1}), "KeyError"),
        (whole(RIGHT, status=503), "503"),
    ],
)
async def test_a_broken_stream_is_lost(answer: Answer, problem: str) -> None:
    async with server(answer) as session:
        outcome = await perform(session, STREAM)
    assert outcome.ending is Ending.LOST
    assert re.search(problem, outcome.problem)


async def test_an_aborted_answer_is_lost() -> None:
    async with server(whole(RIGHT, finish_reason="abort")) as session:
        outcome = await perform(session, CHAT)
    assert outcome.ending is Ending.LOST


async def test_a_refused_connection_is_lost() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # held but not listened on, so that every connection is refused
        async with aiohttp.ClientSession(f"http://127.0.0.1:{bound.getsockname()[1]}") as session:
            outcome = await perform(session, CHAT)
    assert outcome.ending is Ending.LOST
    assert "ClientConnectorError" in outcome.problem


async def test_a_client_without_patience_leaves() -> None:
    gone = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        await gone.wait()
        return web.Response()

    async with server(answer) as session:
        outcome = await perform(session, request_of(RequestKind.CHAT, patience_seconds=0.01))
        gone.set()
    assert (outcome.ending, outcome.problem) == (Ending.LEFT, "")


async def test_an_answer_that_never_comes_is_lost() -> None:
    gone = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        await gone.wait()
        return web.Response()

    async with server(answer) as session:
        outcome = await perform(session, CHAT, time_limit_seconds=0.01)
        gone.set()
    assert outcome.ending is Ending.LOST
    assert "no complete answer within" in outcome.problem


def test_a_made_up_prompt_has_as_many_words_as_tokens_and_depends_on_the_seed() -> None:
    path, body = http_request(TRACED, 1)
    assert path == "/v1/completions"
    assert len(str(body["prompt"]).split()) == 7
    assert (body["max_tokens"], body["ignore_eos"], body["stream"]) == (9, True, True)
    assert body == http_request(TRACED, 1)[1]
    assert body["prompt"] != http_request(TRACED, 2)[1]["prompt"]


def test_a_streamed_chat_asks_for_a_stream() -> None:
    path, body = http_request(STREAM, 1)
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "llama",
        "max_tokens": 6,
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
    }


def test_a_plain_chat_does_not() -> None:
    assert http_request(CHAT, 1)[1]["stream"] is False


def test_a_completion_sends_its_prompt() -> None:
    path, body = http_request(COMPLETION, 1)
    assert path == "/v1/completions"
    assert body == {"model": "llama", "max_tokens": 6, "prompt": "Hi"}


async def test_an_answer_to_its_end_whose_text_is_not_compared() -> None:
    async with server(in_pieces(EVENT, EVENT + DONE[:5], DONE[5:])) as session:
        outcome = await perform(session, TRACED, expected=None, arrived_at=10.0)
    assert outcome.problem == ""
    assert outcome.first_token_at is not None and outcome.ended_at is not None
    assert 10.0 <= outcome.first_token_at <= outcome.ended_at
    assert (outcome.arrived_at, outcome.admitted_at, outcome.ending) == (10.0, 10.25, Ending.ANSWERED)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (in_pieces(EVENT), "without .DONE."),
        (in_pieces(EVENT, b'data: {"er', b'ror": {"message": "evicted"}}\n\n'), "broke off: .*evicted"),
        (in_pieces(EVENT, b'data: {"error": "evicted"}\n\n'), "broke off: evicted"),
        (in_pieces(), "ended without"),
    ],
)
async def test_an_answer_that_breaks_off_is_lost(answer: Answer, problem: str) -> None:
    async with server(answer) as session:
        outcome = await perform(session, TRACED, expected=None)
    assert re.search(problem, outcome.problem)
    assert outcome.ending is Ending.LOST


async def test_an_error_response_is_lost() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "too many"}}, status=429)

    async with server(refuse) as session:
        outcome = await perform(session, TRACED, expected=None)
    assert outcome.problem.startswith("429: ") and "too many" in outcome.problem
    assert outcome.ended_at is not None and outcome.first_token_at is None


def numbered(number: int) -> TrafficRequest:
    return TrafficRequest(number * 0.001, "llama", 2, 3, RequestKind.COMPLETION, f"Question {number}")


async def test_every_request_is_sent_and_accounted_for() -> None:
    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        text = expected_text(body["model"], body["prompt"], body["max_tokens"])
        return web.json_response({"choices": [{"text": text, "finish_reason": "length"}]})

    traffic = LoadGenerator([numbered(number) for number in range(20)], clients_max=300, expected=TEXTS)
    async with server(answer) as session:
        await traffic.run(session)
    assert traffic.all_sent
    assert (traffic.sent, traffic.open, traffic.count(Ending.ANSWERED)) == (20, 0, 20)


async def test_requests_open_at_a_cancellation_are_cut_short() -> None:
    both_came, over = asyncio.Event(), asyncio.Event()
    came = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal came
        came += 1
        if came == 2:
            both_came.set()
        await over.wait()
        return web.Response()

    late = request_of(RequestKind.CHAT, at_seconds=60.0)
    traffic = LoadGenerator([numbered(0), numbered(1), late], clients_max=300)
    async with server(answer) as session, asyncio.TaskGroup() as tasks:
        running = tasks.create_task(traffic.run(session))
        async with asyncio.timeout(10):
            await both_came.wait()
        assert traffic.open == 2
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        over.set()
    assert (traffic.sent, traffic.open, traffic.all_sent) == (2, 0, False)
    assert traffic.count(Ending.CUT_SHORT) == 2


async def test_requests_wait_for_a_free_client_and_are_late_then() -> None:
    busiest = open_requests = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal busiest, open_requests
        open_requests += 1
        busiest = max(busiest, open_requests)
        await asyncio.sleep(0.02)
        open_requests -= 1
        return web.json_response({"choices": [{"text": "x"}]})

    progress: list[float] = []
    requests = [numbered(number) for number in range(4)]
    traffic = LoadGenerator(requests, clients_max=2, speed=1000.0, progress=progress.append)
    async with server(answer) as session:
        await traffic.run(session)
    assert (busiest, traffic.count(Ending.ANSWERED), progress) == (2, 4, [1, 2, 3, 4])
    assert traffic.late_seconds >= 0.02
