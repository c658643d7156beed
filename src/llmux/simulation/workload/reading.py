"""Reads traces: CSV files of Azure, BurstGPT and our own columns, and llmux's access log."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from llmux.simulation.workload.call import TracedCall, TraceError

TIME = ("timestamp", "time")
MODEL = ("model",)
PROMPT = ("prompt_tokens", "contexttokens", "request tokens", "input_tokens")
OUTPUT = ("output_tokens", "generatedtokens", "response tokens", "completion_tokens")
BYTES_PER_TOKEN, BYTES_PER_STREAMED_TOKEN = 4, 220
"""What a token takes of a body, and of an event stream, for logs that know sizes only."""
TOKENS_MAX = 10_000_000
"""More than this in one request is taken for a mistake."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One file's calls, by their time. ``dated``: the times are seconds since 1970, not since some beginning."""

    source: str
    calls: tuple[TracedCall, ...]
    dated: bool


def read_trace(argument: str) -> Trace:
    """Read ``FILE``, or ``NAME=FILE`` where the file does not say the model; raises ``TraceError``."""
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
    return Trace(argument, tuple(call for call, _ in rows), dated.pop())


def _split(argument: str) -> tuple[str | None, Path]:
    name, separator, path = argument.partition("=")
    if not separator or Path(argument).exists():
        return None, Path(argument)
    if not name or not path:
        raise TraceError(f"{argument!r} is neither a FILE nor NAME=FILE")
    return name, Path(path)


def _rows(file: TextIO, source: str, name: str | None) -> Iterator[tuple[TracedCall, bool]]:
    """All calls, each with whether its time is a date."""
    first = file.readline()
    file.seek(0)
    if first.lstrip().startswith("{"):
        yield from _log_rows(file, source, name)
    else:
        yield from _csv_rows(file, source, name)


def _csv_rows(file: TextIO, source: str, name: str | None) -> Iterator[tuple[TracedCall, bool]]:
    reader = csv.reader(file)
    try:
        columns = {title.strip().lower(): place for place, title in enumerate(next(reader, []))}
        time, prompt, output = (_column(columns, words, source) for words in (TIME, PROMPT, OUTPUT))
        model = None if name is not None else _column(columns, MODEL, source)
        for row in reader:
            if not row:
                continue
            try:
                at, dated = _time(row[time])
                calls = name if model is None else row[model].strip()
                yield TracedCall(at, _named(calls), _tokens(row[prompt], 0), _tokens(row[output], 1)), dated
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


def _log_rows(file: TextIO, source: str, name: str | None) -> Iterator[tuple[TracedCall, bool]]:
    """Lines of llmux's access log; those that are no inference name no model, or no size, and are passed over."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise ValueError("not a JSON object")
            model = name or entry.get("model")
            prompt, output = _logged_prompt(entry), _logged_output(entry)
            if not model or prompt is None or output is None:
                continue
            at, dated = _time(str(entry.get("time", "")))
            yield TracedCall(at, str(model), _tokens(prompt, 0), _tokens(output, 1)), dated
        except ValueError as error:
            raise TraceError(f"{source}, line {number}: {error}") from None


def _logged_prompt(entry: Mapping[str, Any]) -> Any:
    """The prompt's tokens, or what the request's size lets one guess."""
    tokens, size = entry.get("prompt_tokens"), entry.get("request_bytes")
    return int(size / BYTES_PER_TOKEN) if tokens is None and isinstance(size, int) else tokens


def _logged_output(entry: Mapping[str, Any]) -> Any:
    """The answer's tokens, or what its size lets one guess: a streamed token is an event of its own."""
    tokens, size = entry.get("output_tokens"), entry.get("response_bytes")
    per_token = BYTES_PER_STREAMED_TOKEN if entry.get("stream") else BYTES_PER_TOKEN
    return int(size / per_token) if tokens is None and isinstance(size, int) else tokens


def _named(model: str | None) -> str:
    if not model:
        raise ValueError("the model's name is empty")
    return model


def _time(text: str) -> tuple[float, bool]:
    """Seconds, and whether they count from 1970. Times without a zone are taken for UTC: only differences matter."""
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
    """A number of tokens; what has none at all, as failed requests in some traces, counts as the least possible."""
    try:
        count = int(given)
    except (TypeError, ValueError):
        raise ValueError(f"{str(given)[:60]!r} is not a number of tokens") from None
    if not 0 <= count <= TOKENS_MAX:
        raise ValueError(f"{count} is no believable number of tokens")
    return max(count, least)
