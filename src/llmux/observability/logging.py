"""Logging with structlog over the standard library, to standard error: one line per transition or outcome.

``RUST_LOG`` works as in 0.7.7: ``info``, ``debug``, or ``info,vllm=debug``, where ``vllm`` means the engines' output.
A server writes to standard error in a thread (``observability/background.py``).
"""

import logging
import os
import sys
import time

import structlog

from llmux.observability.background import drop_log_line

ENGINE_TARGET = "vllm"
"""0.7.7's name for the engines' output in ``RUST_LOG``."""

LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL,
}

DEBUG_LINES_PER_SECOND = 1000
"""Rendering a line takes some 50 us of the event loop's time, so that an engine that prints without end takes at most a
twentieth of it."""
DEBUG_LINES_AT_ONCE = 300
"""Longer than any traceback."""


class DebugBudget(logging.Filter):
    """Drops debug lines, such as the engines' output, that come faster than the event loop can afford."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = float(DEBUG_LINES_AT_ONCE)
        self._as_of = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.DEBUG:
            return True
        now = time.monotonic()
        self._lines = min(DEBUG_LINES_AT_ONCE, self._lines + (now - self._as_of) * DEBUG_LINES_PER_SECOND)
        self._as_of = now
        if self._lines < 1:
            drop_log_line()
            return False
        self._lines -= 1
        return True


def configure_logging(level: str = "info", *, verbose: bool = False) -> None:
    """Configure all loggers of this process. ``verbose`` logs everything, including the engines' output."""
    own, engine = levels(level, os.environ.get("RUST_LOG", ""), verbose=verbose)
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    output = logging.StreamHandler(sys.stderr)
    output.addFilter(DebugBudget())
    output.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(logging.WARNING)
    logging.getLogger("llmux").setLevel(own)
    logging.getLogger("engine").setLevel(engine)


def levels(configured: str, rust_log: str, *, verbose: bool) -> tuple[int, int]:
    """The levels of llmux's own logs and of the engines' output. Unknown words in ``RUST_LOG`` are ignored."""
    if verbose:
        return logging.DEBUG, logging.DEBUG
    own = engine = LEVELS.get(configured, logging.INFO)
    for directive in rust_log.split(","):
        target, separator, word = directive.strip().rpartition("=")
        if word.lower() not in LEVELS:
            continue
        level = LEVELS[word.lower()]
        if not separator:
            own = engine = level
        elif target == ENGINE_TARGET:
            engine = level
        elif target == "llmux":
            own = level
    return own, engine
