"""What the demo takes for right, and for done."""

import asyncio
from pathlib import Path

import pytest

from llmux.simulation.client import ResponseBroken, workflow
from llmux.simulation.demo.answers import Pictures, right_answer
from llmux.simulation.engine.comfyui import picture
from llmux.simulation.engine.text import embedding, expected_text
from llmux.simulation.traffic import RequestKind, TrafficRequest


def request_of(kind: RequestKind) -> TrafficRequest:
    return TrafficRequest(0.0, "m", 1, 5, kind, "Hi")


def test_the_right_answer_is_of_the_kind_that_was_asked_for() -> None:
    assert right_answer(request_of(RequestKind.CHAT)) == expected_text("m", "Hi", 5)
    assert right_answer(request_of(RequestKind.EMBEDDING)) == embedding("m", "Hi")
    assert right_answer(request_of(RequestKind.IMAGE)) == picture(workflow("Hi"))


async def test_a_picture_is_waited_for(tmp_path: Path) -> None:
    waiting = asyncio.ensure_future(Pictures(tmp_path, 60.0).painted("7"))  # noqa: TID251 - a client of its own
    await asyncio.sleep(0)
    assert not waiting.done()
    (tmp_path / "7.png").write_bytes(b"a picture")
    assert await waiting == b"a picture"


async def test_a_picture_that_is_not_painted_in_time_is_lost(tmp_path: Path) -> None:
    with pytest.raises(ResponseBroken, match="accepted, and not painted within 0 s"):
        await Pictures(tmp_path, 0.0).painted("7")
