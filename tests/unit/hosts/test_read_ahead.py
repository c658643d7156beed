import asyncio
import os
import threading
from pathlib import Path

import psutil
import pytest

from llmux.hosts import page_cache, read_ahead
from llmux.hosts.page_cache import cached_bytes, cached_bytes_of
from llmux.hosts.read_ahead import PIECE_BYTES, ReadAhead, ReadEnd, ReadLimits
from tests.support.cold_files import MIB, cached_mib, write_cold

NO_LIMITS = ReadLimits(bytes_per_second=1e15, bytes_max=1 << 60, available_min_mib=0)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_cold(tmp_path / f"{number}.safetensors", 6) for number in range(2)]


@pytest.fixture(params=["cachestat", "mincore"])
def _each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "mincore":
        monkeypatch.setattr(page_cache, "_count_by_cachestat", lambda *_: None)


@pytest.mark.usefixtures("_each_way")
def test_a_part_of_a_file_in_the_page_cache_is_counted(files: list[Path]) -> None:
    descriptor = os.open(files[0], os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(descriptor, MIB, 2 * MIB)
        assert cached_bytes(descriptor, 0, 6 * MIB) == MIB
        assert cached_bytes(descriptor, 0, 2 * MIB) == 0
        assert cached_bytes(descriptor, 2 * MIB, 4 * MIB) == MIB
        assert cached_bytes(descriptor, 2 * MIB, 100) == 100
    finally:
        os.close(descriptor)


def test_files_of_others_are_not_known(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "_count_by_cachestat", lambda *_: None)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cached_bytes_of(files) is None


@pytest.mark.parametrize("can_populate", [True, False])
def test_all_files_are_in_the_page_cache_afterwards(
    can_populate: bool, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_populate:
        monkeypatch.setattr(page_cache, "MADV_POPULATE_READ", 12345)
    reading = ReadAhead([tmp_path / "gone", *files], NO_LIMITS)
    assert reading.read() is ReadEnd.COMPLETE
    assert reading.read_bytes == reading.done_bytes == reading.total_bytes == 12 * MIB
    assert reading.read_seconds > 0
    assert cached_mib(*files) == 12


def test_what_is_in_the_page_cache_is_not_read_again(files: list[Path]) -> None:
    ReadAhead(files[:1], NO_LIMITS).read()
    reading = ReadAhead(files, NO_LIMITS)
    assert reading.read() is ReadEnd.COMPLETE
    assert reading.read_bytes == 6 * MIB
    assert reading.done_bytes == 12 * MIB


def test_it_ends_at_its_limit(files: list[Path]) -> None:
    reading = ReadAhead(files, ReadLimits(1e15, 2 * PIECE_BYTES, 0))
    assert reading.read() is ReadEnd.ENOUGH
    assert reading.read_bytes == 2 * PIECE_BYTES
    again = ReadAhead(files, ReadLimits(1e15, 2 * PIECE_BYTES, 0))
    assert again.read() is ReadEnd.ENOUGH
    assert again.read_bytes == 0, "what is in the page cache counts"


def test_it_ends_when_memory_becomes_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "BYTES_BETWEEN_LOOKS", 2 * PIECE_BYTES)
    available = iter([1000, 999])
    file = write_cold(tmp_path / "weights.gguf", 8)
    reading = ReadAhead([file], ReadLimits(1e15, 1 << 60, 1000), read_available_mib=lambda: next(available))
    assert reading.read() is ReadEnd.LOW_MEMORY
    assert reading.read_bytes == 2 * PIECE_BYTES


def test_it_ends_when_what_it_reads_does_not_stay(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "cached_bytes", lambda descriptor, offset, length: 0)
    reading = ReadAhead(files, NO_LIMITS)
    assert reading.read() is ReadEnd.NOT_KEPT
    assert reading.read_bytes == 6 * MIB, "the second file was not begun"


def test_where_the_page_cache_is_not_known_everything_is_read(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(page_cache, "cached_bytes", lambda descriptor, offset, length: None)
        reading = ReadAhead(files, NO_LIMITS)
        assert reading.read() is ReadEnd.COMPLETE
    assert reading.read_bytes == 12 * MIB
    assert cached_mib(*files) == 12


def test_it_keeps_to_its_rate(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    reading = ReadAhead(files, ReadLimits(1.0 * MIB, 1 << 60, 0), clock=lambda: now)

    def wait(seconds: float) -> bool:
        nonlocal now
        now += seconds
        return False

    monkeypatch.setattr(reading._stop, "wait", wait)
    assert reading.read() is ReadEnd.COMPLETE
    assert now - 100.0 == pytest.approx(12.0)


def test_a_range_is_in_the_page_cache_when_it_has_been_populated(files: list[Path]) -> None:
    descriptor = os.open(files[0], os.O_RDONLY)
    try:
        assert page_cache.populate(descriptor, 2 * MIB, MIB) is True
        assert cached_bytes(descriptor, 2 * MIB, MIB) == MIB
        with pytest.raises(OSError, match="Bad address"):
            page_cache.populate(descriptor, 8 * MIB, MIB)
    finally:
        os.close(descriptor)


def test_a_file_that_has_become_shorter_is_passed_over(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    look = page_cache.cached_bytes

    def shorten(descriptor: int, offset: int, length: int) -> int | None:
        os.truncate(files[0], MIB)
        return look(descriptor, offset, length)

    monkeypatch.setattr(page_cache, "cached_bytes", shorten)
    reading = ReadAhead(files, NO_LIMITS)
    assert reading.read() is ReadEnd.COMPLETE
    assert cached_mib(files[1]) == 6


async def until_it_has_read(reading: ReadAhead) -> None:
    async with asyncio.timeout(30):
        while not reading.read_bytes:
            await asyncio.sleep(0)


async def test_it_can_be_stopped_while_it_waits_for_its_rate(files: list[Path]) -> None:
    reading = ReadAhead(files, ReadLimits(1.0, 1 << 60, 0))
    ended = reading.start()
    await until_it_has_read(reading)
    reading.stop()
    async with asyncio.timeout(30):
        assert await ended is ReadEnd.STOPPED
    assert reading.read_bytes == PIECE_BYTES


async def test_its_failure_is_raised_where_it_is_awaited(files: list[Path]) -> None:
    def fail() -> int:
        raise RuntimeError("no memory to read")

    with pytest.raises(RuntimeError, match="no memory to read"):
        await ReadAhead(files, NO_LIMITS, read_available_mib=fail).start()


async def test_only_its_own_thread_gets_idle_priority(files: list[Path]) -> None:
    seen: list[object] = []

    def look() -> int:
        seen.append(psutil.Process(threading.get_native_id()).ionice().ioclass)
        return 1 << 20

    before = psutil.Process().ionice().ioclass
    await ReadAhead(files, NO_LIMITS, read_available_mib=look).start()
    assert seen == [psutil.IOPRIO_CLASS_IDLE]
    assert psutil.Process().ionice().ioclass == before
