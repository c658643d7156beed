"""One client of a replay: asks as the trace says, and listens to the end of the answer."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from llmux.simulation.report.fate import Fate
from llmux.simulation.workload.call import TracedCall

PATH = "/v1/completions"
_COMMON = (
    "the of and to in is that it for on are as with they at be this have from or one had by word but not what all "
    "were we when your can said there use an each which she do how their if will up other about out many then them"
)
WORDS = _COMMON.split()
"""One token each in the vocabularies of most models; a prompt of n of them has about n tokens."""

DONE = b"data: [DONE]"
ERROR = b'data: {"error"'
REASON_LENGTH = 120


class Broken(Exception):
    """The answer is an error, or is not complete."""


@dataclass(slots=True)
class Heard:
    """What came of one request, on the event loop's clock; ``problem`` says why it was not served."""

    call: TracedCall
    sent_at: float
    wait_seconds: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    problem: str = ""

    def fate(self, started_at: float) -> Fate:
        """The same on the replay's clock."""
        admitted_at = None if self.wait_seconds is None else self.sent_at + self.wait_seconds
        times = (admitted_at, self.first_token_at, self.ended_at)
        admitted, first, ended = (None if at is None else at - started_at for at in times)
        served = not self.problem and self.ended_at is not None
        return Fate(self.call.model, self.sent_at - started_at, admitted, first, ended, served)


def body_of(call: TracedCall, seed: int) -> Mapping[str, object]:
    """A streamed completion with about as many tokens as the trace says; another seed, another prompt."""
    words = random.Random(seed).choices(WORDS, k=max(1, call.prompt_tokens))
    return {
        "model": call.model,
        "prompt": " ".join(words),
        "max_tokens": call.output_tokens,
        "ignore_eos": True,
        "stream": True,
    }


async def ask(session: aiohttp.ClientSession, heard: Heard, body: Mapping[str, object]) -> None:
    """Send the request and note what comes of it; never raises, except that a cancellation ends it."""
    loop = asyncio.get_running_loop()
    try:
        async with session.post(PATH, json=body) as answer:
            milliseconds = answer.headers.get("x-llmux-queue-ms")
            heard.wait_seconds = None if milliseconds is None else float(milliseconds) / 1000
            if answer.status != 200:
                raise Broken(f"{answer.status}: {(await answer.text())[:REASON_LENGTH]}")
            await _listen(answer.content, heard)
    except Broken as broken:
        heard.problem = str(broken)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        heard.problem = f"{type(error).__name__}: {error}"[:REASON_LENGTH]
    heard.ended_at = loop.time()


async def _listen(content: aiohttp.StreamReader, heard: Heard) -> None:
    """Read an event stream to its end; pieces need not end where events do."""
    loop = asyncio.get_running_loop()
    tail = b""
    async for piece in content.iter_any():
        if heard.first_token_at is None:
            heard.first_token_at = loop.time()
        seen = tail + piece
        if ERROR in seen:
            raise Broken(f"the stream broke off: {seen.partition(ERROR)[2][:REASON_LENGTH].decode(errors='replace')}")
        tail = seen[-len(ERROR) :]
    if DONE not in tail:
        raise Broken("the stream ended without [DONE]")
