"""The access log's lines, batches, and broken files."""

import json
from pathlib import Path

from msgspec.structs import replace

from llmux.observability.access_log import BATCH_LINES_MAX, AccessLog, FinishedRequest
from llmux.simulation.traces import read_trace


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
    access_log.flush()
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
    access_log.flush()
    assert json.loads(file.read_text())["session"] == "talk-7"


def test_a_full_batch_is_written_without_the_sweep(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    for _ in range(BATCH_LINES_MAX):
        access_log.add(finished())
    assert len(file.read_text().splitlines()) == BATCH_LINES_MAX


def test_logging_resumes_when_the_file_can_be_written_again(tmp_path: Path) -> None:
    access_log = AccessLog(tmp_path / "missing" / "access.jsonl")
    access_log.add(finished())
    access_log.flush()
    (tmp_path / "missing").mkdir()
    access_log.add(finished())
    access_log.flush()
    assert len((tmp_path / "missing" / "access.jsonl").read_text().splitlines()) == 1


def test_the_simulator_reads_the_access_log(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    access_log.add(finished())
    access_log.add(finished("b"))
    access_log.flush()
    requests = read_trace(str(file)).requests
    assert [(one.model, one.prompt_tokens, one.output_tokens) for one in requests] == [("a", 100, 10), ("b", 100, 10)]
