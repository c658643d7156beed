"""The real vLLM put into images by the real criu and frozen in mid-stream: the same answers, and the same streams."""

import re
from collections.abc import AsyncIterator
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import openai
import pytest

from tests.support.real_criu import CRIU, nothing_left
from tests.support.real_criu import SKIP_REASON as NO_CRIU
from tests.support.real_vllm import (
    MISSING,
    QUESTIONS,
    SKIP_REASON,
    Alone,
    ask,
    kept_stream,
    openai_client,
    real_config,
    real_model,
    set_eviction,
    starts,
)
from tests.support.server import LlmuxProcess, llmux_server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.criu,
    pytest.mark.skipif(bool(MISSING), reason=SKIP_REASON),
    pytest.mark.skipif(not CRIU, reason=NO_CRIU),
    pytest.mark.timeout(600),
]

SWITCHES = 12
SWITCHES_EACH_WAY = 8
STREAM_TOKENS = 120
FASTER = 3
"""Far below what was seen (docs/residency.md): machines are shared, and a restore waits for the disk."""


def config(eviction: str, directory: Path, *, models: str = "ab", keep_images: bool = True, **more: Any) -> Any:
    # Started as vLLM itself does it: images are compared with that.
    described = {name: real_model(name, eviction, context=1024, env={"VLLM_CPU_FORK": "0"}) for name in models}
    checkpoint = {"criu_path": CRIU, "images_dir": str(directory / "images"), "keep_images": keep_images}
    return real_config(described, checkpoint=checkpoint, **more)


async def alternate(client: openai.AsyncOpenAI, alone: Alone, count: int) -> None:
    """So many switches, each for a request of which the engine's own answer is known."""
    for model, question in islice(zip(cycle("ab"), cycle(QUESTIONS), strict=False), count):
        answer = await ask(client, model, question, is_stream=False)
        assert answer.text == alone[model][question], f"{model} {question}"
        assert answer.finish_reason in ("stop", "length")


def wakes(server: LlmuxProcess) -> list[float]:
    """How long each wake took, in order."""
    return [float(found[1]) for found in server.find_in_log(r"switched .*wake_seconds=(\S+)")]


async def test_images_that_are_kept_bring_the_same_engine_back_again_and_again(alone: Alone, tmp_path: Path) -> None:
    with nothing_left():
        settings = config("retain+checkpoint", tmp_path)
        async with llmux_server(settings, tmp_path) as server, openai_client(server) as client:
            await alternate(client, alone, SWITCHES)
            assert len(starts(server)) == 2, "each engine was started once, and came from its image from then on"
            for model in "ab":
                assert len(server.find_in_log(rf"dumped .*model={model}$")) == 1
                assert len(server.find_in_log(rf"restored .*model={model} ")) >= 3
                assert (tmp_path / "images" / model / "images" / "manifest.json").exists()
            cold, warm = min(wakes(server)[:2]), median(wakes(server)[2:])
            assert warm * FASTER <= cold, f"cold start {cold:.2f} s, from the image {warm:.2f} s"
            assert await server.terminate() == 0


async def test_each_way_into_an_image_and_back_leaves_the_answers_as_they_were(alone: Alone, tmp_path: Path) -> None:
    """Dumped anew each time, from each state of the weights."""
    with nothing_left():
        settings = config("offload+checkpoint", tmp_path, keep_images=False)
        async with llmux_server(settings, tmp_path) as server, openai_client(server) as client:
            await alternate(client, alone, SWITCHES_EACH_WAY)
            await set_eviction(server, "ab", "discard+checkpoint")
            await alternate(client, alone, SWITCHES_EACH_WAY)
            assert len(starts(server)) == 2
            assert len(server.find_in_log("dumped ")) == 2 * SWITCHES_EACH_WAY - 1
            assert not server.find_in_log("stopping the engine instead|sleeps instead|unfaithful")
            cold, warm = min(wakes(server)[:2]), median(wakes(server)[2:])
            assert warm * FASTER <= cold, f"cold start {cold:.2f} s, from the image {warm:.2f} s"


@pytest.fixture(scope="module")
async def freezing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlmuxProcess]:
    """A server over a and c, which a switch freezes."""
    directory = tmp_path_factory.mktemp("freezing")
    settings = config(
        "discard+checkpoint", directory, models="ac", keepalive_seconds=0.3, policy={"min_active_seconds": 1.0}
    )
    settings["models"]["c"]["drain"] = "freeze"
    with nothing_left():
        async with llmux_server(settings, directory) as server:
            yield server
            assert len(starts(server)) == 2, "each engine was started once, whatever the evictions"


@pytest.fixture(scope="module")
async def undisturbed(freezing: LlmuxProcess) -> str:
    """What c streams while nobody else asks."""
    async with kept_stream(freezing, "c", STREAM_TOKENS) as stream:
        pass
    return stream.text


@pytest.mark.parametrize(
    "eviction", ["retain+keep_running", "offload+keep_running", "discard+keep_running", "discard+checkpoint"]
)
async def test_a_stream_is_frozen_by_a_switch_and_comes_back_whole(
    alone: Alone, freezing: LlmuxProcess, undisturbed: str, eviction: str
) -> None:
    server = freezing
    async with openai_client(server) as client:
        await set_eviction(server, "ac", eviction)
        # Both have left in this way before, and c is on the GPU: what the stream waits for is the switch alone.
        for model in "ac":
            await ask(client, model, QUESTIONS[0], is_stream=False)
        async with kept_stream(server, "c", STREAM_TOKENS) as stream:
            await stream.wait_for_chunks(10)
            logged = len(server.log)
            asked_at = monotonic()
            answer = await ask(client, "a", QUESTIONS[1], is_stream=False)
            answered_at = monotonic()
        assert answer.text == alone["a"][QUESTIONS[1]]
        assert stream.times[9] < answered_at < stream.times[-1], "a was not answered in mid-stream"
        before = sum(at < answered_at for at in stream.times)
        assert 10 <= before < len(stream.times) - 10
        assert stream.gap_seconds(asked_at) > (answered_at - asked_at) / 2, "the chunks show no gap"
        assert stream.errors == [] and stream.ends == 1
        assert stream.text == undisturbed
        assert stream.comments, "the client was left without a sign of life"
        assert len(starts(server)) == 2
        if "checkpoint" in eviction:
            frozen = server.find_in_log(r"dumped .*image=(\S+/c/frozen) ")
            assert frozen and not Path(frozen[0][1]).exists(), "an image with requests in it is good for one restore"
        assert re.search(r"previous=c ", "\n".join(server.log[logged:]))
