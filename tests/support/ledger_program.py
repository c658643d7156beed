"""A program that is no engine and holds GPU memory of the ledgers that it sees: ``LEDGER MIB [FILE]``.

It ends when the file exists, with 3, and without one never by itself. ``--child`` before it holds the memory in a child
of a session of its own; ``--deaf`` ignores SIGTERM.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from llmux.core.identifiers import VISIBLE_GPUS
from llmux.simulation.ledger import visible_ledgers

NAME = "a program of another kind"


def main(arguments: list[str]) -> int:
    """Hold the memory."""
    if arguments[0] == "--child":
        again = [sys.executable, "-m", "tests.support.ledger_program", *arguments[1:]]
        child = subprocess.Popen(again, start_new_session=True)
        return child.wait()
    if arguments[0] == "--deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        arguments = arguments[1:]
    pattern, mib, *files = arguments
    for ledger in visible_ledgers(pattern, os.environ):
        ledger.allocate(os.getpid(), int(mib), NAME)
    sys.stdout.write(f"holding {os.environ.get(VISIBLE_GPUS)}\n")
    sys.stdout.flush()
    while not (files and Path(files[0]).exists()):
        time.sleep(0.01)
    return 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
