"""Which level RUST_LOG, the configuration and -v give."""

import logging
from types import SimpleNamespace

import pytest

from llmux.observability.logging import DEBUG_LINES_AT_ONCE, DebugBudget, levels


@pytest.mark.parametrize(
    ("configured", "rust_log", "verbose", "expected"),
    [
        ("info", "", False, (logging.INFO, logging.INFO)),
        ("debug", "", False, (logging.DEBUG, logging.DEBUG)),
        ("warning", "", False, (logging.WARNING, logging.WARNING)),
        ("info", "debug", False, (logging.DEBUG, logging.DEBUG)),
        ("info", "warn,vllm=debug", False, (logging.WARNING, logging.DEBUG)),
        ("info", "llmux=error", False, (logging.ERROR, logging.INFO)),
        ("info", "hyper=trace,nonsense", False, (logging.INFO, logging.INFO)),
        ("error", "error", True, (logging.DEBUG, logging.DEBUG)),
    ],
)
def test_levels(configured: str, rust_log: str, verbose: bool, expected: tuple[int, int]) -> None:
    assert levels(configured, rust_log, verbose=verbose) == expected


def record(level: int) -> logging.LogRecord:
    return logging.LogRecord("engine", level, __file__, 1, "a line", (), None)


def test_a_flood_of_debug_lines_takes_no_other_line_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("llmux.observability.logging.time", SimpleNamespace(monotonic=lambda: now[0]))
    budget = DebugBudget()
    passed = [budget.filter(record(logging.DEBUG)) for _ in range(DEBUG_LINES_AT_ONCE + 10)]
    assert passed == [True] * DEBUG_LINES_AT_ONCE + [False] * 10
    assert budget.filter(record(logging.INFO))
    now[0] += 0.0025
    assert [budget.filter(record(logging.DEBUG)) for _ in range(3)] == [True, True, False]
