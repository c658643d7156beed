"""The access log's lines, batches, and broken files."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from llmux.observability import background
from llmux.observability.access_log import BATCH_LINES_MAX, AccessLog, FinishedRequest, read_demands
from llmux.simulation.traces import read_trace
from tests.support.processes import wait_until


def finished(model: str = "a") -> FinishedRequest:
    return FinishedRequest(
        request_id=b"r-1",
        model=model,
        endpoint="/v1/chat/completions",
        status=200,
        request_bytes=400,
        response_bytes=2200,
        is_stream=True,
        queue_seconds=0.25,
        seconds=2.0,
    )


def test_the_fields_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    access_log.add(finished())
    assert not file.exists(), "written by the batch"
    access_log.close()
    entry = json.loads(file.read_text())
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "request_id": "r-1",
        "model": "a",
        "endpoint": "/v1/chat/completions",
        "status": 200,
        "queue_ms": 250,
        "duration_ms": 2000,
        "request_bytes": 400,
        "response_bytes": 2200,
        "stream": True,
    }


def test_a_session_is_written_where_the_client_sent_one(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    access_log.add(replace(finished(), session="talk-7"))
    access_log.close()
    assert json.loads(file.read_text())["session"] == "talk-7"


def test_a_full_batch_is_written_without_the_sweep(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    for _ in range(BATCH_LINES_MAX):
        access_log.add(finished())
    wait_until(lambda: file.exists() and file.read_bytes().count(b"\n") == BATCH_LINES_MAX, "the batch")
    access_log.close()


def test_logging_resumes_when_the_file_can_be_written_again(tmp_path: Path) -> None:
    access_log = AccessLog(tmp_path / "missing" / "access.jsonl")
    access_log.add(finished())
    access_log.flush()
    wait_until(lambda: access_log.lines_dropped == 1, "the failure")
    (tmp_path / "missing").mkdir()
    access_log.add(finished())
    access_log.close()
    assert len((tmp_path / "missing" / "access.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (b'{"time":"2026-11-24T10:00:02.000+00:00","request_id":"r-0","mod', b""),
        (b'{"time":1}\n{"time":"20', b'{"time":1}\n'),
        (b'{"time":1}\n', b'{"time":1}\n'),
        (b"something else", b"something else\n"),
    ],
)
def test_a_line_that_broke_off_spoils_no_other(tmp_path: Path, before: bytes, kept: bytes) -> None:
    """A full disk, or the end of the last llmux: what is left of the line goes, and only that."""
    file = tmp_path / "access.jsonl"
    file.write_bytes(before)
    access_log = AccessLog(file)
    access_log.add(finished())
    access_log.close()
    written = file.read_bytes()
    assert written.startswith(kept)
    assert json.loads(written.removeprefix(kept))["request_id"] == "r-1"


def test_a_file_that_could_be_written_in_part_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    write, tries = os.write, []

    def full_disk(descriptor: int, data: bytes) -> int:
        tries.append(descriptor)
        if len(tries) == 1:
            return write(descriptor, data[:300])
        if len(tries) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(background.os, "write", full_disk)
    for _ in range(3):
        access_log.add(finished())
    access_log.flush()
    wait_until(lambda: access_log.lines_dropped == 2, "the failure")
    access_log.add(finished("b"))
    access_log.close()
    assert [json.loads(line)["model"] for line in file.read_text().splitlines()] == ["a", "b"]


def test_a_named_pipe_that_nobody_reads_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmux.observability.access_log.QUEUE_BYTES_MAX", 1 << 18)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    access_log = AccessLog(pipe)
    sent = 4 * BATCH_LINES_MAX
    for _ in range(sent):
        access_log.add(finished())
    assert access_log.lines_dropped > 0
    received = []

    def read_on() -> bool:
        with suppress(BlockingIOError):
            received.append(os.read(reader, 1 << 20))
        return b"".join(received).count(b"\n") + access_log.lines_dropped == sent

    wait_until(read_on, "the rest")
    assert all(json.loads(line) for line in b"".join(received).splitlines())
    access_log.close()
    os.close(reader)


def test_a_rotated_file_needs_no_signal(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    access_log.add(finished())
    access_log.flush()
    wait_until(lambda: file.exists() and file.read_bytes().endswith(b"\n"), "the first line")
    file.rename(tmp_path / "access.jsonl.1")
    access_log.add(finished("b"))
    access_log.close()
    assert json.loads(file.read_text())["model"] == "b"


def test_the_simulator_reads_the_access_log(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    access_log.add(finished())
    access_log.add(finished("b"))
    access_log.close()
    requests = read_trace(str(file)).requests
    assert [(one.model, one.prompt_tokens, one.output_tokens) for one in requests] == [("a", 100, 10), ("b", 100, 10)]


def test_turns_are_the_requests_that_waited_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    for model, queue_seconds, seconds in (("b", 2.0, 3.0), ("a", 1.0, 60.0), ("b", 0.0, 1.0)):
        access_log.add(replace(finished(model), queue_seconds=queue_seconds, seconds=seconds))
    access_log.close()
    with file.open("a") as broken:
        broken.write('{"time":"yesterday","model":"c","queue_ms":9}\n{"time":')
    first, second = read_demands(file)
    assert (first.model, second.model) == ("a", "b")
    assert second.at - first.at == pytest.approx(57.0, abs=0.5)


def test_only_the_end_of_a_log_is_read_for_its_demands(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    for number in range(10):
        access_log.add(finished(f"m{number}"))
    access_log.close()
    line_bytes = file.stat().st_size // 10
    assert [demand.model for demand in read_demands(file, bytes_max=2 * line_bytes + 10)] == ["m8", "m9"]
    assert read_demands(tmp_path / "none") == []
