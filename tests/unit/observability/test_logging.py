"""Which level RUST_LOG, the configuration and -v give."""

import logging

import pytest

from llmux.observability.logging import levels


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
