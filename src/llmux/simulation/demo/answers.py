"""What the demo's engines answer when nothing goes wrong, and the pictures that come of work that was accepted."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from llmux.simulation.client import Answer, ResponseBroken, workflow
from llmux.simulation.engine import comfyui, text
from llmux.simulation.traffic import RequestKind, TrafficRequest

POLL_SECONDS = 0.05


def right_answer(request: TrafficRequest) -> Answer:
    """What a healthy simulated engine answers to a request, or paints for it."""
    match request.kind:
        case RequestKind.EMBEDDING:
            return text.embedding(request.model, request.prompt)
        case RequestKind.IMAGE:
            return comfyui.picture(workflow(request.prompt))
        case _:
            return text.expected_text(request.model, request.prompt, request.output_tokens)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Where the image server writes what it has painted. Its history ends with its process; these files stay."""

    directory: Path
    limit_seconds: float

    async def painted(self, prompt_id: str) -> bytes:
        """Wait for the picture of an accepted prompt; raises ResponseBroken if there is none in time."""
        file, give_up_at = self.directory / comfyui.picture_name(prompt_id), time.monotonic() + self.limit_seconds
        while not file.exists():
            if time.monotonic() > give_up_at:
                raise ResponseBroken(f"the prompt was accepted, and not painted within {self.limit_seconds:.0f} s")
            await asyncio.sleep(POLL_SECONDS)
        return file.read_bytes()
