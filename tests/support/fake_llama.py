"""llama-server's slots in memory, as its build 10068 behaves: saves, restores, refusals, and its faults on demand."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmux.errors import ControlCallFailed

TOKEN_BYTES = 8
HEAD = b"qsgg"
HEAD_BYTES = 24


@dataclass(slots=True)
class FakeSlot:
    """What one slot holds."""

    prompt: str = ""
    task: int | None = None
    """The last task; None as after a start, even if a prompt was restored."""
    is_processing: bool = False
    lora: list[Any] = field(default_factory=list)


class FakeLlama:
    """One start of a server, with the endpoints that it has for llmux. A prompt has a token per character."""

    def __init__(self, directory: Path, slots: int = 2, build: str = "b1") -> None:
        self.directory = directory
        self.slots = [FakeSlot() for _ in range(slots)]
        self.build = build
        self.calls: list[str] = []
        self.on_post: Callable[[str, str], Any] = lambda path, file: None
        """Called with the path and the file before each save or restore: may raise, or return the whole answer."""
        self._tasks = 0

    def ask(self, slot: int, prompt: str) -> None:
        """A request that this slot has answered."""
        self._tasks += 1
        self.slots[slot].prompt, self.slots[slot].task = prompt, self._tasks

    async def get(self, path: str, timeout_seconds: float) -> Any:
        self.calls.append(path)
        if path == "/props":
            return {"build_info": self.build, "total_slots": len(self.slots)}
        assert path == "/slots"
        return [self._describe(number, slot) for number, slot in enumerate(self.slots)]

    def _describe(self, number: int, slot: FakeSlot) -> dict[str, Any]:
        described = {"id": number, "n_ctx": 4096, "is_processing": slot.is_processing}
        if slot.task is None:
            return described
        return {**described, "id_task": slot.task, "n_prompt_tokens": len(slot.prompt), "params": {"lora": slot.lora}}

    async def post(self, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None) -> Any:
        file = str((document or {}).get("filename", ""))
        self.calls.append(f"{path} {file}".rstrip())
        if not 0 < timeout_seconds < 1000:
            raise AssertionError(timeout_seconds)
        answer = self.on_post(path, file)
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer is not None:
            return answer
        _, _, place = path.partition("/slots/")
        number, _, action = place.partition("?action=")
        slot = self.slots[int(number)]
        match action:
            case "save":
                return self.save(slot, file)
            case "restore":
                return self._restore(slot, file, path)
            case "erase":
                slot.prompt = ""
                return {"n_erased": 1}
        raise AssertionError(path)

    def save(self, slot: FakeSlot, file: str) -> dict[str, Any]:
        """Write a slot's file, whole."""
        content = HEAD.ljust(HEAD_BYTES, b"\0") + slot.prompt.encode().ljust(len(slot.prompt) * TOKEN_BYTES, b"\0")
        (self.directory / file).write_bytes(content)
        return {"n_saved": len(slot.prompt), "n_written": len(content)}

    def _restore(self, slot: FakeSlot, file: str, path: str) -> dict[str, Any]:
        content = (self.directory / file).read_bytes()
        tokens = (len(content) - HEAD_BYTES) // TOKEN_BYTES
        if not content.startswith(HEAD):
            slot.prompt = ""
            raise ControlCallFailed(path, "status 400: Unable to restore slot", 400)
        slot.prompt = content[HEAD_BYTES : HEAD_BYTES + tokens].decode()
        return {"n_restored": tokens, "n_read": len(content)}

    def prompts(self) -> list[str]:
        """What the slots hold."""
        return [slot.prompt for slot in self.slots]


def file_bytes(tokens: int) -> int:
    """How large the file of so many tokens is."""
    return HEAD_BYTES + tokens * TOKEN_BYTES
