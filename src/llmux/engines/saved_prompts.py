"""Conversations of llama-server that survive its stop: the prompt caches of its slots, saved to files and restored.

Before the engine leaves, ``save`` writes each slot that holds a prompt to a file; when it is back, and has answered its
canary (which takes a slot itself), ``restore`` reads them into the slots again. Both are an attempt: whatever fails
costs only that a prompt is read once more, so neither raises, and what was left out is said in the report.

What llama-server (build 10068) does, measured, that this rests on:

* It has to be started with ``--slot-save-path``. Saves and restores are tasks of its one main loop: two at once take as
  long as one after the other (64 MB each: 0.24 s and 0.29 s), and a save of a slot that is answering waits for the end
  of the answer. So there is one call at a time, and busy slots are left out.
* A restored prompt is used by the next request that begins with it, without ``id_slot`` and whatever slot it lies in
  (1, 2 and 4 slots: all but the last token come from the cache), because a request goes to the slot that shares the
  most with it, from a tenth of its prompt on (``--slot-prompt-similarity``). The token that begins every text is
  enough for that in a request of less than ten: it takes the place of a conversation although other slots are empty.
* A request that shares less goes to the slot that was used longest ago. Restored slots count as never used, and of
  equals the one with the highest number goes first. So the latest conversation is restored into a slot that the canary
  has used, and the rest from slot 0 upwards: new conversations then take the place of the oldest.
* ``/slots`` tells how many tokens a slot holds (``n_prompt_tokens``) and its last task, whose numbers grow. For a slot
  that was restored and not used since it says neither; its file is still good, and is not written again.
* A file contains the tokens, then keys and values. It fits only the same number of slots, unless both servers run
  with ``--kv-unified``, and only the same ``--flash-attn`` and types of the KV cache; the context may have another
  length as long as the prompt fits. All else is refused with 400 and leaves the slot empty.
* With ``--kv-unified`` and a RAM cache, which are the defaults without ``-np``, a slot is emptied when another one gets
  a request (``--cache-idle-slots``), so only one conversation could be saved.
* A full disk is answered with 200 and ``n_written`` 0. A file without its last bytes aborts the server.
* A file does not say for which LoRA adapters its prompt was computed. Restored into a slot whose last request named
  the same adapters as the next one, it is used as if it were theirs: wrong answers. So a slot whose last request named
  any (``params.lora``) is neither saved nor restored into.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from llmux.engines.calls import Endpoints
from llmux.engines.prompt_files import PromptFiles, SavedPrompt
from llmux.errors import ControlCallFailed

QUESTION_SECONDS = 5.0
"""For an answer that needs no reading or writing of files."""
TOKENS_MIN = 64
"""A shorter prompt, such as the canary's, is read again sooner than its file would be."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A slot that was not saved, or a file that was not restored, and why."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(slots=True)
class Report:
    """What a save or a restore came to."""

    prompts: list[SavedPrompt] = field(default_factory=list)
    """Those that were written or read, the most recently used first."""
    unchanged: int = 0
    """Slots that need not be saved: their file holds the same."""
    left_out: list[LeftOut] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """How many tokens need not be read again."""
        return sum(prompt.tokens for prompt in self.prompts)

    @property
    def size_bytes(self) -> int:
        """How much was written or read."""
        return sum(prompt.size_bytes for prompt in self.prompts)

    def leave_out(self, what: str, reason: str) -> None:
        """Note something that was not done."""
        self.left_out.append(LeftOut(what, reason))


@dataclass(frozen=True, slots=True)
class _Slot:
    """A slot as ``/slots`` describes it. ``task``: its last, None if it has had none since the start."""

    number: int
    task: int | None
    tokens: int
    is_processing: bool
    has_adapters: bool


@dataclass(frozen=True, slots=True)
class _Held:
    """Which file is of a slot's prompt, as long as its last task is this one."""

    prompt: SavedPrompt
    task: int | None


class SavedPrompts:
    """Saves and restores the prompts of one start of a model's engine. One call at a time.

    ``identity`` is from ``prompt_files.identity_of``, called before that start: what is saved belongs to the files that
    the engine has loaded, and not to those that have replaced them since. ``token_bytes`` is the size of a token in the
    KV cache (``GgufModel.kv_bytes(1, …)``): from it follows, before anything is written, whether a prompt fits into the
    budget.
    """

    def __init__(
        self,
        files: PromptFiles,
        identity: str,
        token_bytes: int,
        *,
        tokens_min: int = TOKENS_MIN,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._files = files
        self._identity = identity
        self._token_bytes = token_bytes
        self._tokens_min = tokens_min
        self._clock = clock
        self._held: dict[int, _Held] = {}
        self._is_open = False

    async def save(self, endpoints: Endpoints, limit_seconds: float) -> Report:
        """Save what the slots hold, the most recently used first, within the time; no request must begin meanwhile."""
        report, began = Report(), self._clock()
        try:
            await self._save(endpoints, began + limit_seconds, report)
        except (ControlCallFailed, OSError) as error:
            report.leave_out("all other slots", str(error))
        report.seconds = self._clock() - began
        return report

    async def restore(self, endpoints: Endpoints, limit_seconds: float, *, newer_than_ns: int = 0) -> Report:
        """Restore the most recently used prompts, as many as there are slots, after the canary and before any request.

        ``newer_than_ns``: only those saved after that time, for a server whose slots are as they were then.

        A file that the server refuses is deleted, and so is one over which it stops to answer: the latter must not
        happen at every start anew.
        """
        report, began = Report(), self._clock()
        try:
            await self._restore(endpoints, began + limit_seconds, newer_than_ns, report)
        except (ControlCallFailed, OSError) as error:
            report.leave_out("all other files", str(error))
        report.seconds = self._clock() - began
        return report

    async def _save(self, endpoints: Endpoints, deadline: float, report: Report) -> None:
        await self._open(endpoints)
        done: list[SavedPrompt] = []
        for slot in sorted(await _slots(endpoints), key=_recency):
            held = self._held.get(slot.number)
            if held is not None and held.task == slot.task and self._files.is_believed(held.prompt):
                report.unchanged += 1
                done.append(held.prompt)
                continue
            if not slot.is_processing and (slot.task is None or slot.tokens < self._tokens_min):
                continue
            reason = self._why_not(slot, deadline - self._clock(), done)
            if reason is not None:
                report.leave_out(f"slot {slot.number}", reason)
                continue
            prompt = await self._save_slot(endpoints, slot, deadline, done, report)
            if prompt is not None:
                done.append(prompt)
                report.prompts.append(prompt)

    def _why_not(self, slot: _Slot, left_seconds: float, done: Collection[SavedPrompt]) -> str | None:
        """Why a slot cannot be saved. Room for it is made as late as possible, so that nothing is deleted in vain."""
        size = slot.tokens * self._token_bytes
        if slot.is_processing:
            return "it is answering a request"
        if slot.has_adapters:
            return "its prompt was computed with adapters"
        if not self._can_be_moved(size, left_seconds):
            return f"no time is left for its {slot.tokens} tokens"
        if size + sum(prompt.size_bytes for prompt in done) > self._files.budget_bytes:
            return f"the budget has no room for its {slot.tokens} tokens ({size} bytes)"
        return None

    def _can_be_moved(self, size_bytes: int, left_seconds: float) -> bool:
        """Whether the time is enough to write or read so much, as far as is known; reading is the faster."""
        rate = self._files.bytes_per_second
        return left_seconds > 0 and (rate is None or size_bytes <= rate * left_seconds)

    async def _save_slot(
        self, endpoints: Endpoints, slot: _Slot, deadline: float, done: Collection[SavedPrompt], report: Report
    ) -> SavedPrompt | None:
        held = self._held.get(slot.number)
        replaced = held.prompt if held is not None and held.prompt not in done else None
        await asyncio.to_thread(self._files.make_room, slot.tokens * self._token_bytes, done, replaced)
        file, began = self._files.new_name(), self._clock()
        left_seconds = max(deadline - began, 0.001)
        path = f"/slots/{slot.number}?action=save"
        try:
            answer = await endpoints.post(path, left_seconds, {"filename": file})
        except ControlCallFailed as error:
            await asyncio.to_thread(self._files.discard, file)
            if error.status is None:
                raise
            report.leave_out(f"slot {slot.number}", str(error))
            return None
        tokens, written = _number(answer, "n_saved"), _number(answer, "n_written")
        if tokens <= 0 or written <= 0:
            await asyncio.to_thread(self._files.discard, file)
            report.leave_out(f"slot {slot.number}", "it is empty" if tokens <= 0 else "the file could not be written")
            return None
        self._files.bytes_per_second = written / max(self._clock() - began, 0.001)
        if replaced not in self._files.prompts:
            replaced = None
        prompt = await asyncio.to_thread(self._files.add, file, tokens, done, replaced)
        if prompt is None:
            report.leave_out(f"slot {slot.number}", f"the budget has no room for its file ({written} bytes)")
            return None
        if prompt.size_bytes != written:
            await asyncio.to_thread(self._files.forget, prompt)
            report.leave_out(f"slot {slot.number}", f"its file has {prompt.size_bytes} bytes instead of {written}")
            return None
        self._held[slot.number] = _Held(prompt, slot.task)
        return prompt

    async def _restore(self, endpoints: Endpoints, deadline: float, newer_than_ns: int, report: Report) -> None:
        await self._open(endpoints)
        prompts = tuple(prompt for prompt in self._files.prompts if prompt.modified_ns > newer_than_ns)
        if not prompts:
            return
        slots = sorted(await _slots(endpoints), key=_recency)
        free = [slot for slot in slots if not slot.is_processing and not slot.has_adapters]
        restored: dict[int, SavedPrompt] = {}
        for prompt in prompts:
            if len(restored) == len(free):
                report.leave_out(prompt.file, f"no slot is left for it, of {len(free)}")
                continue
            if not self._can_be_moved(prompt.size_bytes, deadline - self._clock()):
                report.leave_out(prompt.file, "no time is left")
                continue
            slot = free[len(restored)].number
            if await self._restore_slot(endpoints, prompt, slot, deadline, report):
                restored[slot] = prompt
                report.prompts.append(prompt)
        tasks = {slot.number: slot.task for slot in await _slots(endpoints)}
        self._held = {slot: _Held(prompt, tasks.get(slot)) for slot, prompt in restored.items()}

    async def _restore_slot(
        self, endpoints: Endpoints, prompt: SavedPrompt, slot: int, deadline: float, report: Report
    ) -> bool:
        left_seconds = max(deadline - self._clock(), 0.001)
        path = f"/slots/{slot}?action=restore"
        try:
            answer = await endpoints.post(path, left_seconds, {"filename": prompt.file})
        except ControlCallFailed as error:
            await asyncio.to_thread(self._files.forget, prompt)
            if error.status is None:
                raise
            report.leave_out(prompt.file, str(error))
            return False
        if _number(answer, "n_restored") == prompt.tokens and _number(answer, "n_read") == prompt.size_bytes:
            return True
        await asyncio.to_thread(self._files.forget, prompt)
        report.leave_out(prompt.file, f"something else was restored: {str(answer)[:200]}")
        with suppress(ControlCallFailed):
            await endpoints.post(f"/slots/{slot}?action=erase", max(deadline - self._clock(), 0.001), {})
        return False

    async def _open(self, endpoints: Endpoints) -> None:
        """Take over the files, as far as they are of this model and of this build of the server."""
        if self._is_open:
            return
        properties = await endpoints.get("/props", QUESTION_SECONDS)
        build = properties.get("build_info") if isinstance(properties, dict) else None
        await asyncio.to_thread(self._files.open, f"{self._identity} {build}")
        self._is_open = True


async def _slots(endpoints: Endpoints) -> list[_Slot]:
    answer = await endpoints.get("/slots", QUESTION_SECONDS)
    described = answer if isinstance(answer, list) else []
    return [_slot(document) for document in described if _number(document, "id") >= 0]


def _slot(document: Mapping[str, Any]) -> _Slot:
    task, tokens = _number(document, "id_task"), _number(document, "n_prompt_tokens")
    parameters = document.get("params")
    adapters = parameters.get("lora") if isinstance(parameters, dict) else None
    return _Slot(
        number=_number(document, "id"),
        task=task if task >= 0 else None,
        tokens=tokens if tokens >= 0 else max(0, _number(document, "n_ctx")),
        is_processing=document.get("is_processing") is not False,
        has_adapters=bool(adapters),
    )


def _recency(slot: _Slot) -> tuple[float, int]:
    """Sorts the most recently used slot first, then those never used by their number."""
    return (0.0 if slot.task is None else -1.0 - slot.task, slot.number)


def _number(document: object, key: str) -> int:
    """An integer of a server's answer; -1 if it is none."""
    found = document.get(key) if isinstance(document, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else -1
