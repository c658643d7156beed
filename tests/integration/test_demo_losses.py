"""The mixed demo notices work that was accepted and lost: here the image server is stopped while it paints."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from llmux.config.parse import parse
from llmux.engines.registry import description_file
from llmux.gpus.hook import VARIABLE
from llmux.simulation.demo.run import Demo, DemoOptions
from llmux.simulation.demo.scenarios import MIXED, ImageServer, Scenario
from llmux.simulation.demo.summary import Summary
from llmux.simulation.demo.view import Display
from llmux.simulation.gpus import HOOK
from llmux.simulation.traffic import Ending, RequestKind, TrafficRequest


class NoDisplay(Display):
    def show(self, state: object) -> None:
        pass


class PromptsThenAChat(Scenario):
    """The work on the prompts takes far longer than the image server stays once a chat waits."""

    prompts = 5

    def traffic(self, seed: int, seconds: float) -> Iterator[TrafficRequest]:
        for number in range(self.prompts):
            yield TrafficRequest(0.0, "images", 1, 1, RequestKind.IMAGE, f"Picture {number}")
        yield TrafficRequest(0.1, "chat", 1, 8, RequestKind.CHAT, "Hi")


def scenario() -> Scenario:
    chat, _, images = MIXED.models
    slow = ImageServer(0.0, prompt_seconds=0.5, free_seconds=0.0)
    stopping = dataclasses.replace(images, eviction="retain+stop", engine=slow)
    return PromptsThenAChat("", (chat, stopping), "chat")


async def run_demo(description: dict[str, Any]) -> Summary:
    changes = {"engines": {"comfyui": description}}
    demo = Demo(DemoOptions(1.0, scenario=scenario(), changes=changes, work_limit_seconds=6.0), NoDisplay())
    await demo.run()
    assert demo.summary is not None
    return demo.summary


@pytest.mark.parametrize("asks_for_work", [True, False])
async def test_work_is_lost_only_if_llmux_does_not_ask_for_it(
    monkeypatch: pytest.MonkeyPatch, asks_for_work: bool
) -> None:
    monkeypatch.setenv(VARIABLE, HOOK)
    file = description_file("comfyui")
    description: dict[str, Any] = parse(file.read_text(), str(file)).data
    if not asks_for_work:
        del description["busy"]
    summary = await run_demo(description)
    lost = summary.endings[Ending.LOST]
    assert summary.requests == summary.endings[Ending.ANSWERED] + lost == PromptsThenAChat.prompts + 1
    assert summary.is_good is asks_for_work
    assert (lost > 0) is not asks_for_work
    assert len(summary.problems) == lost
    assert set(summary.problems) <= {"images, image prompt: the prompt was accepted, and not painted within 6 s"}
