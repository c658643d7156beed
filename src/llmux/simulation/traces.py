"""Reads traces: CSV files with the columns of Azure, BurstGPT or our own, and llmux's access log."""

import csv
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from llmux.simulation.traffic import Trace, TraceError, TrafficRequest

TIME = ("timestamp", "time")
MODEL = ("model",)
PROMPT = ("prompt_tokens", "contexttokens", "request tokens", "input_tokens")
OUTPUT = ("output_tokens", "generatedtokens", "response tokens", "completion_tokens")
BYTES_PER_TOKEN, BYTES_PER_STREAMED_TOKEN = 4, 220
"""Bytes in a body and in an event stream, where each token is an event: for logs that have sizes only."""
TOKENS_MAX = 10_000_000
"""A request with more tokens is taken for a mistake in the trace."""


def read_trace(argument: str) -> Trace:
    """Read ``FILE``, or ``NAME=FILE`` for a file whose requests are all for one model; raises ``TraceError``."""
    name, path = _split(argument)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(file, str(path), name))
    except OSError as error:
        raise TraceError(f"{path}: the trace cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}: the trace is not UTF-8 text; unpack it first if it is compressed") from None
    if not rows:
        raise TraceError(f"{path}: the trace holds no request")
    rows.sort(key=lambda row: row[0].at_seconds)
    dated = {is_date for _, is_date in rows}
    if len(dated) > 1:
        raise TraceError(f"{path}: some times are dates and some are plain seconds; use one of the two")
    return Trace(argument, tuple(request for request, _ in rows), dated.pop())


def _split(argument: str) -> tuple[str | None, Path]:
    name, separator, path = argument.partition("=")
    if not separator or Path(argument).exists():
        return None, Path(argument)
    if not name or not path:
        raise TraceError(f"{argument!r} is neither a FILE nor NAME=FILE")
    return name, Path(path)


def _rows(file: TextIO, source: str, name: str | None) -> Iterator[tuple[TrafficRequest, bool]]:
    """The requests, each with whether its time is a date."""
    first = file.readline()
    file.seek(0)
    if first.lstrip().startswith("{"):
        yield from _log_rows(file, source, name)
    else:
        yield from _csv_rows(file, source, name)


def _csv_rows(file: TextIO, source: str, name: str | None) -> Iterator[tuple[TrafficRequest, bool]]:
    reader = csv.reader(file)
    try:
        columns = {title.strip().lower(): number for number, title in enumerate(next(reader, []))}
        time, prompt, output = (_column(columns, words, source) for words in (TIME, PROMPT, OUTPUT))
        model = None if name is not None else _column(columns, MODEL, source)
        for row in reader:
            if not row:
                continue
            try:
                at, dated = _time(row[time])
                named = name if model is None else row[model].strip()
                yield TrafficRequest(at, _checked_name(named), _tokens(row[prompt], 0), _tokens(row[output], 1)), dated
            except (ValueError, IndexError) as error:
                reason = "a column is missing" if isinstance(error, IndexError) else error
                raise TraceError(f"{source}, line {reader.line_num}: {reason}") from None
    except csv.Error as error:
        raise TraceError(f"{source}, line {reader.line_num}: not CSV: {error}") from None


def _column(columns: Mapping[str, int], words: tuple[str, ...], source: str) -> int:
    for word in words:
        if word in columns:
            return columns[word]
    found = ", ".join(columns) or "none"
    remedy = "; where all requests are for one model, give the trace as NAME=FILE" if words is MODEL else ""
    raise TraceError(f"{source}, line 1: no column {' or '.join(words)} (found: {found}){remedy}")


def _log_rows(file: TextIO, source: str, name: str | None) -> Iterator[tuple[TrafficRequest, bool]]:
    """Requests of llmux's access log. Lines without a model or a size are not inference requests, and are skipped.

    So is a last line that breaks off: llmux may be writing it, or has been stopped by a full disk.
    """
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            try:
                entry = json.loads(line)
            except ValueError:
                if number > 1 and not line.endswith("\n"):
                    return
                raise
            if not isinstance(entry, dict):
                raise ValueError("not a JSON object")
            model = name or entry.get("model")
            prompt, output = _logged_prompt(entry), _logged_output(entry)
            if not model or prompt is None or output is None:
                continue
            at, dated = _time(str(entry.get("time", "")))
            yield TrafficRequest(at, str(model), _tokens(prompt, 0), _tokens(output, 1)), dated
        except ValueError as error:
            raise TraceError(f"{source}, line {number}: {error}") from None


def _logged_prompt(entry: Mapping[str, Any]) -> Any:
    """The prompt's tokens, or an estimate from the request's size."""
    tokens, size = entry.get("prompt_tokens"), entry.get("request_bytes")
    return int(size / BYTES_PER_TOKEN) if tokens is None and isinstance(size, int) else tokens


def _logged_output(entry: Mapping[str, Any]) -> Any:
    """The answer's tokens, or an estimate from its size."""
    tokens, size = entry.get("output_tokens"), entry.get("response_bytes")
    per_token = BYTES_PER_STREAMED_TOKEN if entry.get("stream") else BYTES_PER_TOKEN
    return int(size / per_token) if tokens is None and isinstance(size, int) else tokens


def _checked_name(model: str | None) -> str:
    if not model:
        raise ValueError("the model's name is empty")
    return model


def _time(text: str) -> tuple[float, bool]:
    """Seconds, and whether they count from 1970. Times without a zone are read as UTC, as only differences matter."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            raise ValueError(f"the time {text[:60]!r} is neither seconds nor a date") from None
        zoned = moment if moment.tzinfo is not None else datetime.fromisoformat(f"{text.strip()}+00:00")
        return zoned.timestamp(), True
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"the time {text[:60]!r} is not a number of seconds")
    return seconds, False


def _tokens(given: Any, least: int) -> int:
    """A number of tokens, raised to ``least``: some traces have failed requests without an output token."""
    try:
        count = int(given)
    except (TypeError, ValueError):
        raise ValueError(f"{str(given)[:60]!r} is not a number of tokens") from None
    if not 0 <= count <= TOKENS_MAX:
        raise ValueError(f"{count} is no believable number of tokens")
    return max(count, least)
