from pathlib import Path

import pytest

from llmux.observability.access_log import AccessLog, FinishedRequest
from llmux.simulation.traces import read_trace
from llmux.simulation.traffic import TraceError, TrafficRequest

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:03.9799600,4808,10
"""
AZURE_2024 = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.250000+00:00,2162,5\n"
OURS = "timestamp,model,prompt_tokens,output_tokens\n0.5,a,10,20\n1,b,30,40\n"
BURST = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,,1.5,ChatGPT,472,18,490,Conversation log
45,,2.0,GPT-4,1087,0,1087,API log
"""
LOG = """{"time": "2026-11-24T10:00:00.5Z", "model": "a", "prompt_tokens": 7, "output_tokens": 9, "status": 200}
{"time": "2026-11-24T10:00:01Z", "path": "/v1/models", "status": 200}

{"time": 1795514402.0, "model": "b", "prompt_tokens": 1, "output_tokens": 2}
"""


def written(directory: Path, text: str) -> Path:
    file = directory / "trace"
    file.write_text(text)
    return file


def read(directory: Path, text: str, name: str = "") -> list[TrafficRequest]:
    file = written(directory, text)
    return list(read_trace(f"{name}={file}" if name else str(file)).requests)


def test_azure_has_dates_and_no_model_and_is_put_in_order(tmp_path: Path) -> None:
    requests = read(tmp_path, AZURE, "code")
    assert [(request.model, request.prompt_tokens, request.output_tokens) for request in requests] == [
        ("code", 4808, 10),
        ("code", 3180, 8),
    ]
    assert requests[1].at_seconds - requests[0].at_seconds == pytest.approx(0.052, abs=1e-5)
    assert read_trace(f"code={tmp_path / 'trace'}").dated


def test_dates_with_a_zone(tmp_path: Path) -> None:
    assert read(tmp_path, AZURE_2024, "m") == [TrafficRequest(1715299200.25, "m", 2162, 5)]


def test_our_own_columns(tmp_path: Path) -> None:
    assert read(tmp_path, OURS) == [TrafficRequest(0.5, "a", 10, 20), TrafficRequest(1.0, "b", 30, 40)]
    assert not read_trace(str(tmp_path / "trace")).dated


def test_a_given_name_goes_before_the_column(tmp_path: Path) -> None:
    assert [request.model for request in read(tmp_path, OURS, "x")] == ["x", "x"]


def test_burstgpt_and_answers_without_a_token(tmp_path: Path) -> None:
    assert read(tmp_path, BURST) == [TrafficRequest(5.0, "ChatGPT", 472, 18), TrafficRequest(45.0, "GPT-4", 1087, 1)]


def test_the_access_log_passes_over_what_is_no_inference(tmp_path: Path) -> None:
    file = written(tmp_path, LOG.replace("1795514402.0", '"2026-11-24T10:00:02+00:00"'))
    requests = read_trace(str(file)).requests
    assert [(request.model, request.prompt_tokens, request.output_tokens) for request in requests] == [
        ("a", 7, 9),
        ("b", 1, 2),
    ]
    assert requests[1].at_seconds - requests[0].at_seconds == pytest.approx(1.5)


def test_an_access_log_without_tokens_is_guessed_from_sizes(tmp_path: Path) -> None:
    plain = '{"time": 1.0, "model": "a", "request_bytes": 400, "response_bytes": 80}\n'
    streamed = '{"time": 2.0, "model": "a", "request_bytes": 400, "response_bytes": 2200, "stream": true}\n'
    requests = read(tmp_path, plain + streamed)
    assert [(request.prompt_tokens, request.output_tokens) for request in requests] == [(100, 20), (100, 10)]


def test_the_last_line_of_an_access_log_may_break_off(tmp_path: Path) -> None:
    line = '{"time": 1.0, "model": "a", "request_bytes": 400, "response_bytes": 80}\n'
    assert len(read(tmp_path, line * 2 + line[:30])) == 2
    with pytest.raises(TraceError, match="line 2: "):
        read(tmp_path, line + line[:30] + line)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (AZURE, "", "line 1: no column model .*NAME=FILE"),
        ("a,b\n1,2\n", "m", "line 1: no column timestamp or time .found: a, b."),
        (OURS + "x,a,1,1\n", "", "line 4: the time 'x' is neither seconds nor a date"),
        (OURS + "-1,a,1,1\n", "", "line 4: the time '-1' is not a number of seconds"),
        (OURS + "2,a,1,many\n", "", "line 4: 'many' is not a number of tokens"),
        (OURS + "2,a,-1,1\n", "", "line 4: -1 is no believable number of tokens"),
        (OURS + "2,a,1\n", "", "line 4: a column is missing"),
        (OURS + "2,,1,1\n", "", "line 4: the model's name is empty"),
        (OURS + "2023-11-16 18:17:04,a,1,1\n", "", "some times are dates"),
        ("timestamp,model,prompt_tokens,output_tokens\n", "", "holds no request"),
        ("", "", "line 1: no column .*found: none"),
        (LOG, "", "some times are dates and some are plain seconds"),
        ('{"time": 1\n', "", "line 1: "),
        ('{"model": "a", "prompt_tokens": [], "output_tokens": 1, "time": 1}', "", "line 1: '..' is not a number of"),
        ('{"model": "a", "prompt_tokens": 1, "output_tokens": 1}', "", "line 1: the time '' is neither"),
    ],
)
def test_errors_say_where_and_what(tmp_path: Path, text: str, name: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        read(tmp_path, text, name)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_trace(str(tmp_path / "none"))
    with pytest.raises(TraceError, match="neither a FILE nor NAME=FILE"):
        read_trace("=x")
    packed = tmp_path / "packed"
    packed.write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(TraceError, match="not UTF-8"):
        read_trace(str(packed))


def test_a_file_whose_name_has_an_equals_sign(tmp_path: Path) -> None:
    file = tmp_path / "a=b.csv"
    file.write_text(OURS)
    assert len(read_trace(str(file)).requests) == 2


def test_what_llmux_logs_can_be_read(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log")
    for model, is_stream in (("a", False), ("b", True)):
        log.add(
            FinishedRequest(
                request_id=b"r",
                model=model,
                endpoint="/v1/chat/completions",
                status=200,
                request_bytes=4000,
                response_bytes=22_000,
                is_stream=is_stream,
                queue_seconds=0.1,
                seconds=2.0,
            )
        )
    log.close()
    trace = read_trace(str(tmp_path / "access.log"))
    assert [(request.model, request.prompt_tokens, request.output_tokens) for request in trace.requests] == [
        ("a", 1000, 5500),
        ("b", 1000, 100),
    ]
    assert trace.dated
