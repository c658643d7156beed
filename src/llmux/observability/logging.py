"""Logging with structlog over the standard library, to standard error: one line per transition or outcome.

``RUST_LOG`` works as in 0.7.7: ``info``, ``debug``, or ``info,vllm=debug``, where ``vllm`` means the engines' output.
"""

import logging
import os
import sys

import structlog

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
