"""An HTTP client of llmux, and a load generator that sends each request at its arrival time."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiohttp

from llmux.simulation.on_time import Progress
from llmux.simulation.traffic import Ending, RequestKind, RequestOutcome, TrafficRequest

_COMMON_WORDS = (
    "the of and to in is that it for on are as with they at be this have from or one had by word but not what all "
    "were we when your can said there use an each which she do how their if will up other about out many then them"
)
WORDS = _COMMON_WORDS.split()
"""One token each in most vocabularies, so that a prompt of n of them has about n tokens."""

DONE = b"data: [DONE]"
ERROR = b'data: {"error"'
EVENT = b"data:"
PAUSE_SECONDS = 1.0
"""Shorter gaps between two tokens are the engine's."""
PROBLEM_CHARACTERS_MAX = 200
QUEUE_HEADER = "x-llmux-queue-ms"
WITHOUT_COMMENTS = {"Accept": "*/*, text/event-stream;q=0"}
"""Comments while a stream waits would be taken for its first token, and cost the header above."""


Answer: TypeAlias = str | list[float] | bytes
"""A text, an embedding or a picture."""


class ResponseBroken(Exception):
    """The response is an error, or incomplete."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the answers of a run must be."""

    answer: Callable[[TrafficRequest], Answer]
    """The right answer to a request."""
    result: Callable[[str], Awaitable[Answer]] | None = None
    """Waits for the work on an accepted prompt, which its id names; raises ResponseBroken if it does not get done.

    None where no pictures are asked for."""


def workflow(prompt: str) -> Mapping[str, Any]:
    """What ComfyUI is asked for a picture."""
    return {"1": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt}}, "2": {"class_type": "SaveImage"}}


def http_request(request: TrafficRequest, seed: int) -> tuple[str, Mapping[str, Any]]:
    """The path and the body. Without a prompt one is made up from the seed, and the answer's length is enforced."""
    prompt = request.prompt or " ".join(random.Random(seed).choices(WORDS, k=max(1, request.prompt_tokens)))
    if request.kind is RequestKind.IMAGE:
        return f"/upstream/{request.model}/prompt", {"prompt": workflow(prompt)}
    if request.kind is RequestKind.EMBEDDING:
        return "/v1/embeddings", {"model": request.model, "input": prompt}
    body: dict[str, Any] = {"model": request.model, "max_tokens": request.output_tokens}
    if not request.prompt:
        body["ignore_eos"] = True
    if request.kind in (RequestKind.CHAT, RequestKind.CHAT_STREAM):
        messages = [{"role": "user", "content": prompt}]
        return "/v1/chat/completions", body | {"messages": messages, "stream": request.kind.is_stream}
    if request.kind.is_stream:
        body["stream"] = True
    return "/v1/completions", body | {"prompt": prompt}


class Client:
    """Sends requests and records what comes of them, in seconds since ``started_at`` on the event loop's clock."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        started_at: float,
        *,
        expected: Expectation | None = None,
        time_limit_seconds: float | None = None,
    ) -> None:
        """Without ``expected`` answers are not compared, and an accepted prompt counts as answered.

        A request without an answer after ``time_limit_seconds`` counts as lost.
        """
        self._session = session
        self._started_at = started_at
        self._expected = expected
        self._time_limit_seconds = time_limit_seconds

    def now(self) -> float:
        """Seconds since the start."""
        return asyncio.get_running_loop().time() - self._started_at

    async def send(self, outcome: RequestOutcome, path: str, body: Mapping[str, Any]) -> None:
        """Send the outcome's request and fill the outcome in. Raises nothing but CancelledError."""
        request = outcome.request
        limit = asyncio.timeout(request.patience_seconds or self._time_limit_seconds)
        try:
            async with limit:
                answer = await self._exchange(outcome, path, body)
            # Whoever was told that a prompt is accepted need not stay for the picture to be painted.
            if request.kind is RequestKind.IMAGE:
                answer = await self._result(outcome, str(answer))
        except ResponseBroken as error:
            outcome.problem = str(error)
        except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
            if not limit.expired():
                outcome.problem = f"{type(error).__name__}: {error}"
            elif request.patience_seconds is not None:
                outcome.ending = Ending.LEFT
            else:
                outcome.problem = f"no complete answer within {self._time_limit_seconds:.0f} s"
        else:
            outcome.ending = Ending.ANSWERED
            if self._expected is not None and answer != (right := self._expected.answer(request)):
                outcome.ending = Ending.WRONG
                outcome.problem = f"said {answer[:60]!r} instead of {right[:60]!r}"
        outcome.problem = outcome.problem[:PROBLEM_CHARACTERS_MAX]
        outcome.ended_at = self.now()

    async def _result(self, outcome: RequestOutcome, prompt_id: str) -> Answer:
        if self._expected is None or self._expected.result is None:
            return prompt_id
        result = await self._expected.result(prompt_id)
        outcome.first_token_at = self.now()
        return result

    async def _exchange(self, outcome: RequestOutcome, path: str, body: Mapping[str, Any]) -> Answer:
        async with self._session.post(path, json=body, headers=WITHOUT_COMMENTS) as response:
            milliseconds = response.headers.get(QUEUE_HEADER)
            if milliseconds is not None:
                outcome.admitted_at = outcome.arrived_at + float(milliseconds) / 1000
            if response.status != 200:
                raise ResponseBroken(f"{response.status}: {await response.text()}")
            if outcome.request.kind.is_stream:
                return await self._read_stream(response.content, outcome)
            document = await response.json()
            if outcome.request.kind is RequestKind.IMAGE:
                return str(document["prompt_id"])
            outcome.first_token_at = self.now()
            if outcome.request.kind is RequestKind.EMBEDDING:
                return list(document["data"][0]["embedding"])
            choice = document["choices"][0]
            return _text_of(choice, choice.get("message"))

    async def _read_stream(self, content: aiohttp.StreamReader, outcome: RequestOutcome) -> str:
        """Read an event stream to its end. Events are parsed only if their text is to be compared."""
        text, rest, is_complete = "", b"", False
        pauses = Pauses(outcome)
        async for piece in content.iter_any():
            pauses.received(self.now(), piece.count(EVENT))
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(ERROR):
                    error = json.loads(line.removeprefix(b"data:"))["error"]
                    reason = error.get("message") if isinstance(error, dict) else error
                    raise ResponseBroken(f"the stream broke off: {reason}")
                if line.startswith(DONE):
                    is_complete = True
                elif self._expected is not None and line.startswith(b"data:"):
                    choice = json.loads(line.removeprefix(b"data:"))["choices"][0]
                    text += _text_of(choice, choice.get("delta"))
        if not is_complete:
            raise ResponseBroken("the stream ended without [DONE]")
        return text


class Pauses:
    """Notes in an outcome when its first token came, and how far the answer was before and after each longer pause."""

    def __init__(self, outcome: RequestOutcome) -> None:
        self._outcome = outcome
        self._progress: list[Progress] = []
        self._latest = Progress(0.0, 0)

    def received(self, now: float, tokens: int) -> None:
        """A piece of the stream has arrived, with some tokens: one in each event."""
        outcome, latest = self._outcome, self._latest
        if outcome.first_token_at is None:
            outcome.first_token_at = now
        elif now - latest.at > PAUSE_SECONDS:
            self._progress += (latest, Progress(now, latest.tokens + 1))
            # An engine may put more into its answer than it was asked for: its last events carry no token.
            most = outcome.request.output_tokens
            outcome.progress = tuple(Progress(one.at, min(one.tokens, most)) for one in self._progress)
        self._latest = Progress(now, latest.tokens + tokens)


def _text_of(choice: Mapping[str, Any], message: Mapping[str, Any] | None) -> str:
    """The text of a completion's choice or, in ``message``, of a chat's; raises ResponseBroken."""
    if choice.get("finish_reason") == "abort":
        raise ResponseBroken("the answer was aborted by the engine")
    return (choice["text"] if message is None else message.get("content")) or ""


class LoadGenerator:
    """Sends requests at their arrival times, regardless of how the earlier ones fare (an open loop)."""

    def __init__(
        self,
        requests: Iterable[TrafficRequest],
        *,
        clients_max: int,
        speed: float = 1.0,
        expected: Expectation | None = None,
        time_limit_seconds: float | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """At most ``clients_max`` requests are open at a time; later ones are delayed. ``speed`` divides all times.

        ``progress`` is called with the number of requests sent; the others are those of ``Client``.
        """
        self._requests = requests
        self._clients = asyncio.Semaphore(clients_max)
        self._speed = speed
        self._expected = expected
        self._time_limit_seconds = time_limit_seconds
        self._progress = progress
        self.outcomes: list[RequestOutcome] = []
        """Of the requests that have ended, in the order of their ends."""
        self.sent = 0
        self.all_sent = False
        self.late_seconds = 0.0
        """How far behind its time the most delayed request was sent."""

    @property
    def open(self) -> int:
        """Requests that wait for an answer or are receiving one."""
        return self.sent - len(self.outcomes)

    def count(self, ending: Ending) -> int:
        return sum(outcome.ending is ending for outcome in self.outcomes)

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Return when all requests have ended. A cancellation ends the open ones as cut short."""
        client = Client(
            session,
            asyncio.get_running_loop().time(),
            expected=self._expected,
            time_limit_seconds=self._time_limit_seconds,
        )
        async with asyncio.TaskGroup() as tasks:
            for number, request in enumerate(self._requests):
                due_at = request.at_seconds / self._speed
                # Made before the request is due, as a long prompt takes milliseconds.
                path, body = http_request(request, number)
                await asyncio.sleep(due_at - client.now())
                await self._clients.acquire()
                outcome = RequestOutcome(request, client.now())
                self.late_seconds = max(self.late_seconds, outcome.arrived_at - due_at)
                tasks.create_task(self._send(client, outcome, path, body))
                if self._progress is not None:
                    self._progress(number + 1)
            self.all_sent = True

    async def _send(self, client: Client, outcome: RequestOutcome, path: str, body: Mapping[str, Any]) -> None:
        self.sent += 1
        try:
            await client.send(outcome, path, body)
        except asyncio.CancelledError:
            outcome.ending = Ending.CUT_SHORT
            raise
        finally:
            self.outcomes.append(outcome)
            self._clients.release()
