import json
from pathlib import Path

from llmux.observability.access_log import BATCH_LINES_MAX, AccessLog
from llmux.simulation.traces import read_trace


def note(access_log: AccessLog, **more: object) -> None:
    facts = {"request_id": b"r-1", "model": "a", "endpoint": "/v1/chat/completions", "status": 200} | more
    sizes = {"request_bytes": 400, "response_bytes": 2200, "is_stream": True, "queue_seconds": 0.25, "seconds": 2.0}
    access_log.add(**{**sizes, **facts})  # type: ignore[arg-type]


def test_a_line_says_when_what_and_how_long(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    note(access_log)
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


def test_a_full_batch_does_not_wait_for_the_sweep(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    for _ in range(BATCH_LINES_MAX):
        note(access_log)
    assert len(file.read_text().splitlines()) == BATCH_LINES_MAX


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    access_log = AccessLog(tmp_path / "missing" / "access.jsonl")
    note(access_log)
    access_log.flush()
    (tmp_path / "missing").mkdir()
    note(access_log)
    access_log.flush()
    assert len((tmp_path / "missing" / "access.jsonl").read_text().splitlines()) == 1


def test_the_simulator_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "access.jsonl"
    access_log = AccessLog(file)
    note(access_log)
    note(access_log, model="b")
    access_log.flush()
    requests = read_trace(str(file)).requests
    assert [(one.model, one.prompt_tokens, one.output_tokens) for one in requests] == [("a", 100, 10), ("b", 100, 10)]
