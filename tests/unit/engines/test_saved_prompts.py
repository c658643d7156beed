import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llmux.engines.prompt_files import MANIFEST, PromptFiles
from llmux.engines.saved_prompts import Report, SavedPrompts
from llmux.errors import ControlCallFailed
from tests.support.fake_llama import TOKEN_BYTES, FakeLlama, file_bytes

pytestmark = pytest.mark.anyio

LONG = "abcdefgh" * 20


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "prompts"
    path.mkdir(mode=0o700)
    return path


def store(directory: Path, identity: str = "model", budget_bytes: int = 1 << 20, **more: Any) -> SavedPrompts:
    """As for a new start of the engine."""
    return SavedPrompts(PromptFiles(directory, budget_bytes), identity, TOKEN_BYTES, **more)


async def restarted(directory: Path, slots: int = 2, identity: str = "model") -> tuple[FakeLlama, SavedPrompts, Report]:
    server, prompts = FakeLlama(directory, slots), store(directory, identity)
    return server, prompts, await prompts.restore(server, 10)


def actions(server: FakeLlama, action: str) -> list[int]:
    """The slots that were saved, restored or erased, in order."""
    return [int(call.split("?")[0].rpartition("/")[2]) for call in server.calls if f"action={action}" in call]


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {MANIFEST}


async def test_all_prompts_survive_a_stop(directory: Path) -> None:
    server = FakeLlama(directory, 3)
    server.ask(1, LONG + "1")
    server.ask(2, LONG + "22")
    report = await store(directory).save(server, 10)
    assert [prompt.tokens for prompt in report.prompts] == [162, 161]
    assert report.left_out == [] and report.tokens == 323
    assert report.size_bytes == file_bytes(161) + file_bytes(162)

    again, _, report = await restarted(directory, 3)
    assert again.prompts() == [LONG + "22", LONG + "1", ""]
    assert report.tokens == 323 and report.left_out == []


async def test_the_latest_prompt_goes_where_the_canary_was(directory: Path) -> None:
    server = FakeLlama(directory, 4)
    for slot in (3, 1, 0, 2):
        server.ask(slot, LONG + str(slot))
    await store(directory).save(server, 10)
    assert actions(server, "save") == [2, 0, 1, 3]

    again = FakeLlama(directory, 4)
    again.ask(3, "canary")
    await store(directory).restore(again, 10)
    assert actions(again, "restore") == [3, 0, 1, 2]
    assert again.prompts() == [LONG + "0", LONG + "1", LONG + "3", LONG + "2"]


async def test_fewer_slots_than_files_get_the_latest(directory: Path) -> None:
    server = FakeLlama(directory, 3)
    for slot in range(3):
        server.ask(slot, LONG + str(slot))
    await store(directory).save(server, 10)
    again, _, report = await restarted(directory, 1)
    assert again.prompts() == [LONG + "2"]
    assert [str(left).partition(": ")[2] for left in report.left_out] == ["no slot is left for it, of 1"] * 2


async def test_what_was_not_used_is_not_written_again_and_kept(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG + "0")
    server.ask(1, LONG + "1")
    await store(directory).save(server, 10)
    before = files(directory)

    again, prompts, _ = await restarted(directory)
    again.ask(0, LONG + "1 and more")
    report = await prompts.save(again, 10)
    assert actions(again, "save") == [0] and report.unchanged == 1
    assert len(files(directory) & before) == 1

    third, _, _ = await restarted(directory)
    assert third.prompts() == [LONG + "1 and more", LONG + "0"]


async def test_a_restored_slot_that_had_the_canary_is_saved_after_use_only(directory: Path) -> None:
    server = FakeLlama(directory, 1)
    server.ask(0, LONG)
    await store(directory).save(server, 10)
    again, prompts = FakeLlama(directory, 1), store(directory)
    again.ask(0, "canary")
    await prompts.restore(again, 10)
    assert (await prompts.save(again, 10)).unchanged == 1
    again.ask(0, LONG + "more")
    assert (await prompts.save(again, 10)).tokens == 164
    assert len(files(directory)) == 1


async def test_short_empty_and_busy_slots_are_not_saved(directory: Path) -> None:
    server = FakeLlama(directory, 5)
    server.ask(0, LONG)
    server.ask(1, "canary")
    server.ask(2, "")
    server.ask(3, LONG)
    server.slots[3].is_processing = True
    report = await store(directory).save(server, 10)
    assert actions(server, "save") == [0]
    assert [str(left) for left in report.left_out] == ["slot 3: it is answering a request"]


async def test_a_busy_slot_keeps_what_was_restored_into_it(directory: Path) -> None:
    server = FakeLlama(directory, 1)
    server.ask(0, LONG)
    await store(directory).save(server, 10)
    again, prompts, _ = await restarted(directory, 1)
    again.ask(0, LONG + "more")
    again.slots[0].is_processing = True
    await prompts.save(again, 10)
    third, _, _ = await restarted(directory, 1)
    assert third.prompts() == [LONG]


async def test_a_prompt_that_was_computed_with_adapters_is_not_saved(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)
    server.slots[0].lora = [{"id": 0, "scale": 1.0}]
    report = await store(directory).save(server, 10)
    assert [str(left) for left in report.left_out] == ["slot 0: its prompt was computed with adapters"]
    assert files(directory) == set()


async def test_nothing_is_restored_into_a_slot_that_had_adapters(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)
    await store(directory).save(server, 10)
    again = FakeLlama(directory)
    again.ask(0, "canary")
    again.slots[0].lora = [{"id": 0, "scale": 0.0}]
    await store(directory).restore(again, 10)
    assert again.prompts() == ["canary", LONG]


async def test_a_prompt_beyond_the_budget_is_not_even_written(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)
    server.ask(1, LONG * 10)
    report = await store(directory, budget_bytes=file_bytes(len(LONG)) + 100).save(server, 10)
    assert actions(server, "save") == [0]
    assert [str(left) for left in report.left_out] == [
        "slot 1: the budget has no room for its 1600 tokens (12800 bytes)"
    ]


async def test_the_least_recently_used_prompt_goes_first(directory: Path) -> None:
    budget_bytes = 2 * file_bytes(200)
    server = FakeLlama(directory, 3)
    for slot in range(3):
        server.ask(slot, LONG + str(slot))
    report = await store(directory, budget_bytes=budget_bytes).save(server, 10)
    assert [prompt.tokens for prompt in report.prompts] == [161, 161]
    assert [left.what for left in report.left_out] == ["slot 0"]
    again = FakeLlama(directory, 3)
    prompts = store(directory, budget_bytes=budget_bytes)
    await prompts.restore(again, 10)
    assert again.prompts() == [LONG + "2", LONG + "1", ""]
    again.ask(2, LONG + "new")
    await prompts.save(again, 10)
    third, _, _ = await restarted(directory, 3)
    assert third.prompts() == [LONG + "new", LONG + "2", ""]
    assert sum((directory / file).stat().st_size for file in files(directory)) <= budget_bytes


async def test_a_file_that_is_larger_than_foreseen_is_deleted(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)
    report = await store(directory, budget_bytes=len(LONG) * TOKEN_BYTES).save(server, 10)
    assert [str(left) for left in report.left_out] == ["slot 0: the budget has no room for its file (1304 bytes)"]
    assert files(directory) == set()


class Clock:
    """Time that passes while the server writes, at so many bytes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_no_more_is_begun_than_there_is_time_for(directory: Path) -> None:
    clock, server = Clock(), FakeLlama(directory, 4)

    def take_a_second(path: str, file: str) -> None:
        clock.now += 1.0

    server.on_post = take_a_second
    for slot in range(3):
        server.ask(slot, LONG + str(slot))
    server.ask(3, LONG)
    report = await store(directory, clock=clock).save(server, 2.5)
    assert actions(server, "save") == [3, 2]
    assert [str(left) for left in report.left_out] == [
        "slot 1: no time is left for its 161 tokens",
        "slot 0: no time is left for its 161 tokens",
    ]
    assert report.seconds == 2.0


async def test_restoring_ends_in_time_and_keeps_the_rest(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG + "0")
    server.ask(1, LONG + "1")
    await store(directory).save(server, 10)
    clock, again = Clock(), FakeLlama(directory)

    def take_a_second(path: str, file: str) -> None:
        clock.now += 1.0

    again.on_post = take_a_second
    report = await store(directory, clock=clock).restore(again, 0.5)
    assert again.prompts() == [LONG + "1", ""]
    assert [left.reason for left in report.left_out] == ["no time is left"]
    assert len(files(directory)) == 2


def failing(error: Exception) -> Callable[[str, str], Any]:
    def fail(path: str, file: str) -> None:
        raise error

    return fail


async def test_a_save_without_an_answer_ends_the_saving(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)
    server.ask(1, LONG)

    def half(path: str, file: str) -> None:
        (directory / file).write_bytes(b"half")
        raise ControlCallFailed("POST /slots/1", "no answer within 10 s", is_timeout=True)

    server.on_post = half
    report = await store(directory).save(server, 10)
    assert actions(server, "save") == [1]
    assert [str(left) for left in report.left_out] == ["all other slots: POST /slots/1: no answer within 10 s"]
    assert files(directory) == set()


async def test_a_save_that_is_refused_does_not_end_the_saving(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)
    server.ask(1, LONG)
    server.on_post = failing(ControlCallFailed("POST /slots", "status 501: not supported", 501))
    report = await store(directory).save(server, 10)
    assert actions(server, "save") == [1, 0]
    assert [left.what for left in report.left_out] == ["slot 1", "slot 0"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"n_saved": 160, "n_written": 0}, "the file could not be written"),
        ({"n_saved": 0, "n_written": 24}, "it is empty"),
        ({}, "it is empty"),
        (["?"], "it is empty"),
        ({"n_saved": True, "n_written": 1}, "it is empty"),
    ],
)
async def test_an_answer_that_says_that_nothing_was_saved(directory: Path, answer: Any, reason: str) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)

    def answered(path: str, file: str) -> Any:
        (directory / file).write_bytes(b"")
        return answer

    server.on_post = answered
    report = await store(directory).save(server, 10)
    assert [left.reason for left in report.left_out] == [reason]
    assert files(directory) == set()


async def test_a_file_of_another_size_than_said_is_not_believed(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)

    def short(path: str, file: str) -> Any:
        answer = server.save(server.slots[0], file)
        os.truncate(directory / file, 1000)
        return answer

    server.on_post = short
    report = await store(directory).save(server, 10)
    assert [left.reason for left in report.left_out] == ["its file has 1000 bytes instead of 1304"]
    assert files(directory) == set()


async def test_a_server_that_saves_elsewhere(directory: Path, tmp_path: Path) -> None:
    server = FakeLlama(tmp_path)
    server.ask(0, LONG)
    report = await store(directory).save(server, 10)
    assert report.prompts == [] and "No such file" in report.left_out[0].reason


async def test_a_crash_in_the_middle_of_a_save_leaves_nothing_that_is_believed(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG + "old")
    server.ask(1, LONG)
    begun = asyncio.Event()

    async def write_half_for_ever(file: str) -> None:
        (directory / file).write_bytes(b"qsgg half")
        begun.set()
        await asyncio.Event().wait()

    def stall_at_the_second(path: str, file: str) -> Awaitable[None] | None:
        return write_half_for_ever(file) if path.startswith("/slots/0") else None

    server.on_post = stall_at_the_second
    saving = asyncio.get_running_loop().create_task(store(directory).save(server, 10))
    await begun.wait()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    assert len(files(directory)) == 2
    again, _, report = await restarted(directory)
    assert again.prompts() == [LONG, ""]
    assert report.left_out == [] and len(files(directory)) == 1


async def test_a_file_that_the_server_refuses_is_deleted_and_the_slot_goes_to_the_next(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG + "0")
    server.ask(1, LONG + "1")
    report = await store(directory).save(server, 10)
    latest = directory / report.prompts[0].file
    stamp = latest.stat()
    latest.write_bytes(b"wxyz".ljust(stamp.st_size, b"\0"))
    os.utime(latest, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    again, _, report = await restarted(directory)
    assert actions(again, "restore") == [0, 0]
    assert again.prompts() == [LONG + "0", ""]
    assert "status 400" in report.left_out[0].reason
    assert latest.name not in files(directory)


async def test_a_truncated_file_is_not_shown_to_the_server(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)
    report = await store(directory).save(server, 10)
    os.truncate(directory / report.prompts[0].file, 1303)
    again, _, _ = await restarted(directory)
    assert actions(again, "restore") == [] and files(directory) == set()


async def test_a_file_over_which_the_server_dies_is_not_tried_again(directory: Path) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG + "0")
    server.ask(1, LONG + "1")
    await store(directory).save(server, 10)
    again = FakeLlama(directory)
    again.on_post = failing(ControlCallFailed("POST /slots", "ServerDisconnectedError"))
    report = await store(directory).restore(again, 10)
    assert report.prompts == []
    assert [str(left) for left in report.left_out] == ["all other files: POST /slots: ServerDisconnectedError"]
    third, _, _ = await restarted(directory)
    assert third.prompts() == [LONG + "0", ""]


@pytest.mark.parametrize(("tokens", "size_bytes"), [(3, 1304), (160, 1303), (None, None)])
async def test_a_slot_into_which_something_else_was_restored_is_erased(
    directory: Path, tokens: int | None, size_bytes: int | None
) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)
    await store(directory).save(server, 10)
    again = FakeLlama(directory)
    answer = {"n_restored": tokens, "n_read": size_bytes}
    again.on_post = lambda path, file: answer if "restore" in path else None
    report = await store(directory).restore(again, 10)
    assert "something else was restored" in report.left_out[0].reason
    assert actions(again, "erase") == [0] and files(directory) == set()


@pytest.mark.parametrize("change", ["identity", "build"])
async def test_prompts_of_another_model_or_server_are_deleted(directory: Path, change: str) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)
    await store(directory).save(server, 10)
    again = FakeLlama(directory, build="b2" if change == "build" else "b1")
    await store(directory, "other" if change == "identity" else "model").restore(again, 10)
    assert actions(again, "restore") == [] and files(directory) == set()


async def test_a_server_that_does_not_describe_its_slots(directory: Path) -> None:
    class Silent(FakeLlama):
        async def get(self, path: str, timeout_seconds: float) -> Any:
            raise ControlCallFailed(f"GET {path}", "status 501: slots are disabled", 501)

    report = await store(directory).save(Silent(directory), 10)
    assert [str(left) for left in report.left_out] == ["all other slots: GET /props: status 501: slots are disabled"]


async def test_a_directory_that_cannot_be_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeLlama(directory)
    server.ask(0, LONG)

    def full(self: PromptFiles, identity: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PromptFiles, "open", full)
    report = await store(directory).save(server, 10)
    assert "No space left on device" in report.left_out[0].reason
