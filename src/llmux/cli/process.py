"""What this process sets up for itself before anything else, whatever it was started by. Imports next to nothing."""

import gc
import os
import signal
import sys
from importlib import import_module

HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What must not end a server: those of ``server.signals.REMARKS``, whose import would take longer than this may."""

PYDANTIC_PLUGINS = "PYDANTIC_DISABLE_PLUGINS"


def open_standard_descriptors() -> None:
    """Open /dev/null in place of standard streams that are closed (``<&-``, ``2>&-``).

    Whatever were opened in their place, a socket or the event loop's own descriptor, would be taken for one of them.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - a descriptor, and never closed
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115


def survive_harmless_signals() -> None:
    """Let no signal that a running server would only log kill one that is being started."""
    for number in HARMLESS:
        # Not SIG_IGN, which engines would inherit.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, frame: None)


def hasten_imports() -> None:
    """Save a server that is being started some of the time that its imports take.

    Garbage is not collected before ``Server.start`` has imported everything: imports leave little, and much to search.
    """
    gc.disable()
    _import_structlog_without_rich()
    _import_settings_without_plugins()


def _import_settings_without_plugins() -> None:
    """pydantic looks for plugins in the metadata of every installed package, and imports those that it finds."""
    if PYDANTIC_PLUGINS in os.environ:
        return
    os.environ[PYDANTIC_PLUGINS] = "__all__"
    try:
        import_module("llmux.config.settings")
    finally:
        del os.environ[PYDANTIC_PLUGINS]  # Engines inherit the environment.


def _import_structlog_without_rich() -> None:
    """structlog imports rich where it is installed, for tracebacks that llmux does not print."""
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment] # makes its import fail
    try:
        import_module("structlog")
    finally:
        del sys.modules["rich"]
