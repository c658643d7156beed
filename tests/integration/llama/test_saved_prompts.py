"""Conversations that survive the stop of a real llama-server, and files that must not."""

import asyncio
import logging
import os
import signal
import struct
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import psutil
import pytest

from llmux.engines.gguf import read_model
from llmux.engines.prompt_files import PromptFiles, identity_of
from llmux.engines.saved_prompts import Report, SavedPrompts
from llmux.errors import ControlCallFailed
from tests.support import gguf_files
from tests.support.real_llama import MISSING, SKIP_REASON, RealLlama, model_path, running, words

pytestmark = [pytest.mark.llama, pytest.mark.anyio, pytest.mark.skipif(bool(MISSING), reason=SKIP_REASON)]

BUDGET_BYTES = 1 << 30
LIMIT_SECONDS = 60.0


class Machine:
    """A model that is started again and again with the same directory for its prompts."""

    def __init__(self, path: Path, model: Path, *arguments: str, budget_bytes: int = BUDGET_BYTES) -> None:
        self.path = path
        self.model = model
        self.arguments = arguments
        self.prompts = path / "prompts"
        self.prompts.mkdir(exist_ok=True)
        self.budget_bytes = budget_bytes

    def store(self) -> SavedPrompts:
        identity = identity_of([self.model], self.arguments)
        token_bytes = read_model(self.model).kv_bytes(1)
        return SavedPrompts(PromptFiles(self.prompts, self.budget_bytes), identity, token_bytes)

    def running(self, slots: int, context: int) -> AbstractAsyncContextManager[RealLlama]:
        size = ("-np", str(slots), "-c", str(slots * context))
        place = ("--slot-save-path", str(self.prompts))
        return running(self.model, *size, *place, *self.arguments, directory=self.path)

    def files(self) -> set[Path]:
        return set(self.prompts.glob("*.kv"))


async def ask_the_canary(server: RealLlama) -> None:
    await server.ask("Hello", cache_prompt=False)


async def converse(machine: Machine, prompts: Sequence[str], context: int = 1024) -> Report:
    """Ask these of a new server with a slot for each, and save."""
    async with machine.running(len(prompts), context) as server:
        store = machine.store()
        await store.restore(server, LIMIT_SECONDS)
        for prompt in prompts:
            assert (await server.ask(prompt)).cached <= 1
        report = await store.save(server, LIMIT_SECONDS)
        assert await server.stop() == 0
    assert report.left_out == []
    return report


@pytest.mark.timeout(600)
async def test_a_long_conversation_goes_on_after_a_restart(tmp_path: Path) -> None:
    """The figures are logged: ``--log-cli-level=INFO``."""
    machine = Machine(tmp_path, model_path("slow"))
    conversation = words(3900)
    async with machine.running(1, 4352) as server:
        first = await server.ask(conversation, 100)
        saved = await machine.store().save(server, LIMIT_SECONDS)
        assert await server.stop() == 0
    conversation += first.text
    assert first.read >= 3900 and saved.tokens >= 3999

    async with machine.running(1, 4352) as server:
        await ask_the_canary(server)
        restored = await machine.store().restore(server, LIMIT_SECONDS)
        second = await server.ask(f"{conversation} {words(20, seed=1)}")
    assert restored.tokens == saved.tokens and restored.left_out == []
    assert second.cached + second.read >= 4000
    assert second.read <= 0.05 * (second.cached + second.read)
    # A server without the file would have to read even more than the first one did.
    assert 5 * (restored.seconds + second.first_token_seconds) < first.first_token_seconds
    logging.getLogger(__name__).info(
        "read %d tokens in %.1f s; saved %d MB in %.2f s, restored them in %.2f s; read %d more, first token in %.2f s",
        *(first.read, first.first_token_seconds, saved.size_bytes / 1e6, saved.seconds, restored.seconds),
        *(second.read, second.first_token_seconds),
    )


@pytest.mark.parametrize("slots", [1, 2, 4])
async def test_each_slot_is_used_by_the_request_that_continues_it(tmp_path: Path, slots: int) -> None:
    machine = Machine(tmp_path, model_path("a"))
    prompts = [words(200 + 50 * seed, seed) for seed in range(slots)]
    saved = await converse(machine, prompts)
    assert len(saved.prompts) == len(machine.files()) == slots
    async with machine.running(slots, 1024) as server:
        await ask_the_canary(server)
        restored = await machine.store().restore(server, LIMIT_SECONDS)
        assert restored.tokens == saved.tokens
        for prompt in prompts:
            answer = await server.ask(f"{prompt} {words(3, seed=99)}")
            assert answer.cached > len(prompt.split()) and answer.read <= 3


async def test_answers_are_those_of_a_server_that_was_not_stopped(tmp_path: Path) -> None:
    machine = Machine(tmp_path, model_path("a"))
    conversation = words(300)
    async with machine.running(1, 1024) as server:
        first = await server.ask(conversation, 20)
        await machine.store().save(server, LIMIT_SECONDS)
        expected = await server.ask(f"{conversation}{first.text} apple", 40)
    async with machine.running(1, 1024) as server:
        await machine.store().restore(server, LIMIT_SECONDS)
        found = await server.ask(f"{conversation}{first.text} apple", 40)
    assert (found.text, found.cached) == (expected.text, expected.cached)


async def test_a_new_conversation_takes_the_place_of_the_oldest(tmp_path: Path) -> None:
    machine = Machine(tmp_path, model_path("a"), "--cache-ram", "0")
    prompts = [words(200, seed) for seed in range(4)]
    await converse(machine, prompts)
    async with machine.running(4, 1024) as server:
        await ask_the_canary(server)
        await machine.store().restore(server, LIMIT_SECONDS)
        for seed in range(2):
            await server.ask(words(150, seed=50 + seed))
        kept = [(await server.ask(prompt)).cached > 100 for prompt in prompts[:1:-1]]
        assert kept == [True, True]
        assert [(await server.ask(prompt)).cached > 100 for prompt in prompts[:2]] == [False, False]


async def test_only_what_was_used_since_is_written_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path, model_path("a"))
    prompts = [words(200, seed) for seed in range(3)]
    await converse(machine, prompts)
    before = machine.files()
    async with machine.running(3, 1024) as server:
        await ask_the_canary(server)
        store = machine.store()
        await store.restore(server, LIMIT_SECONDS)
        await server.ask(prompts[0] + " apple")
        report = await store.save(server, LIMIT_SECONDS)
        assert report.unchanged == 2 and len(report.prompts) == 1
    assert len(machine.files() & before) == 2 and len(machine.files()) == 3
    async with machine.running(3, 1024) as server:
        assert len((await machine.store().restore(server, LIMIT_SECONDS)).prompts) == 3
        for prompt in (prompts[0] + " apple", *prompts[1:]):
            assert (await server.ask(prompt)).read == 1


async def test_the_budget_keeps_the_latest(tmp_path: Path) -> None:
    token_bytes = read_model(model_path("a")).kv_bytes(1)
    machine = Machine(tmp_path, model_path("a"), budget_bytes=450 * token_bytes)
    async with machine.running(3, 1024) as server:
        for seed in range(3):
            await server.ask(words(200, seed))
        report = await machine.store().save(server, LIMIT_SECONDS)
    assert len(report.prompts) == 2 and "the budget has no room" in report.left_out[0].reason
    assert sum(file.stat().st_size for file in machine.files()) <= machine.budget_bytes
    async with machine.running(3, 1024) as server:
        await machine.store().restore(server, LIMIT_SECONDS)
        assert [(await server.ask(words(200, seed))).cached > 100 for seed in (2, 1, 0)] == [True, True, False]


async def test_with_a_unified_cache_the_number_of_slots_may_change(tmp_path: Path) -> None:
    machine = Machine(tmp_path, model_path("a"), "--kv-unified", "--no-cache-idle-slots")
    prompts = [words(200, seed) for seed in range(4)]
    await converse(machine, prompts)
    async with machine.running(2, 1024) as server:
        report = await machine.store().restore(server, LIMIT_SECONDS)
        assert len(report.prompts) == len(report.left_out) == 2
        assert [(await server.ask(prompt)).read for prompt in prompts[:1:-1]] == [1, 1]


async def test_without_one_files_of_another_number_of_slots_are_refused_and_deleted(tmp_path: Path) -> None:
    machine = Machine(tmp_path, model_path("a"))
    await converse(machine, [words(200), words(200, 1)])
    async with machine.running(1, 1024) as server:
        report = await machine.store().restore(server, LIMIT_SECONDS)
        assert report.prompts == [] and len(report.left_out) == 2
        assert "status 400" in report.left_out[0].reason
        assert machine.files() == set()
        assert (await server.ask(words(200))).cached == 0


async def test_a_truncated_file_would_abort_the_server_and_is_not_given_to_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, model_path("a"))
    report = await converse(machine, [words(200)])
    file = machine.prompts / report.prompts[0].file
    os.truncate(file, file.stat().st_size - 1)
    async with machine.running(1, 1024) as server:
        with pytest.raises(ControlCallFailed):
            await server.post("/slots/0?action=restore", LIMIT_SECONDS, {"filename": file.name})
        assert await asyncio.wait_for(server.process.wait(), 30) == -6
    async with machine.running(1, 1024) as server:
        assert (await machine.store().restore(server, LIMIT_SECONDS)).prompts == []
        assert (await server.ask(words(200))).cached == 0
    assert machine.files() == set()


@pytest.mark.parametrize("change", ["the weights", "an argument"])
async def test_prompts_of_another_model_are_neither_restored_nor_kept(tmp_path: Path, change: str) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(model_path("a").read_bytes())
    machine = Machine(tmp_path, model)
    await converse(machine, [words(200)])
    if change == "the weights":  # llama-server itself would take the file: b has the same shape
        model.write_bytes(model_path("b").read_bytes())
    else:
        machine.arguments = ("--rope-freq-base", "20000")
    async with machine.running(1, 1024) as server:
        assert (await machine.store().restore(server, LIMIT_SECONDS)).prompts == []
        assert (await server.ask(words(200))).cached == 0
    assert machine.files() == set()


async def test_a_server_that_dies_while_it_saves_leaves_nothing_that_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, model_path("a"))
    async with machine.running(1, 4096) as server:
        await server.ask(words(4000))
        # It gets SIGXFSZ when it has written a MiB.
        psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        with monkeypatch.context() as patches:
            patches.setattr(PromptFiles, "discard", lambda self, file: None)  # as if llmux died with it
            report = await machine.store().save(server, LIMIT_SECONDS)
        assert await asyncio.wait_for(server.process.wait(), 30) == -signal.SIGXFSZ
    assert report.prompts == [] and report.left_out[0].what == "all other slots"
    assert [file.stat().st_size for file in machine.files()] == [1 << 20]
    async with machine.running(1, 4096) as server:
        assert (await machine.store().restore(server, LIMIT_SECONDS)).prompts == []
    assert machine.files() == set()


async def test_a_full_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, model_path("a"))
    name = "prompt-0123456789abcdef.kv"
    monkeypatch.setattr(PromptFiles, "new_name", lambda self: name)
    async with machine.running(1, 1024) as server:
        store = machine.store()
        await store.restore(server, LIMIT_SECONDS)
        (machine.prompts / name).symlink_to("/dev/full")
        await server.ask(words(200))
        report = await store.save(server, LIMIT_SECONDS)
    assert [left.reason for left in report.left_out] == ["the file could not be written"]
    assert report.prompts == [] and machine.files() == set()


async def test_a_busy_slot_is_left_out(tmp_path: Path) -> None:
    machine = Machine(tmp_path, model_path("slow"))
    async with machine.running(2, 512) as server:
        idle = await server.ask(words(70))
        async with asyncio.TaskGroup() as tasks:
            long = tasks.create_task(server.ask(words(20, seed=1), 100))
            await server.wait_until_busy(1 - idle.slot)
            report = await machine.store().save(server, LIMIT_SECONDS)
            assert not long.done()
            long.cancel()
    assert [str(left) for left in report.left_out] == [f"slot {1 - idle.slot}: it is answering a request"]
    assert len(report.prompts) == 1


async def test_prompts_that_were_read_with_an_adapter_are_not_saved(tmp_path: Path) -> None:
    """llama-server would use them for requests without it."""
    adapter = _write_adapter(tmp_path / "adapter.gguf")
    machine = Machine(tmp_path, model_path("a"), "--lora", str(adapter))
    with_it, without = [{"id": 0, "scale": 1.0}], [{"id": 0, "scale": 0.0}]
    prompt = words(200)
    async with machine.running(1, 1024) as server:
        expected = await server.ask(prompt, 6, lora=without)
        assert (await server.ask(prompt, 6, lora=with_it)).text != expected.text
        report = await machine.store().save(server, LIMIT_SECONDS)
        await server.post("/slots/0?action=save", LIMIT_SECONDS, {"filename": "with_it"})
        await server.ask("Hello", lora=without)
        await server.post("/slots/0?action=restore", LIMIT_SECONDS, {"filename": "with_it"})
        assert (await server.ask(prompt, 6, lora=without)).text != expected.text
    assert report.prompts == []
    assert [left.reason for left in report.left_out] == ["its prompt was computed with adapters"]


def _write_adapter(path: Path) -> Path:
    tensors = [
        gguf_files.f32(f"blk.{layer}.attn_{name}.weight.lora_{half}", shape, _numbers(256, hash_of))
        for hash_of, (layer, name, half, shape) in enumerate(
            (layer, name, half, shape)
            for layer in range(2)
            for name in ("q", "v")
            for half, shape in (("a", (64, 4)), ("b", (4, 64)))
        )
    ]
    kind: gguf_files.Metadata = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
    }
    return gguf_files.write(path, kind, tensors)


def _numbers(count: int, seed: int) -> tuple[float, ...]:
    """Numbers around 0 that look random."""
    state, found = seed + 1, []
    for _ in range(count):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        found.append(state / 0x40000000 - 1)
    return struct.unpack(f"<{count}f", struct.pack(f"<{count}f", *found))
