"""The command of ``llmux run``: it has our streams and our foreground, and ends with us, as does all that it starts."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Never

from llmux.instances.shim.conditions import become_child_subreaper, set_attribute
from llmux.instances.shim.spawn import explain_failure
from llmux.instances.shim.tree import end_tree, signal_tree

PR_SET_PDEATHSIG = 1
CANNOT_EXECUTE, NOT_FOUND = 126, 127
"""Exit codes of shells."""
MESSAGE_BYTES_MAX = 1 << 20


class LeasedCommand:
    """One command. Its process is forked at once, while this one has no other thread, and waits to be told to start.

    SIGKILL to this process kills the command too (PR_SET_PDEATHSIG), though not what the command has started: llmux
    finds that by ``LEASE_VARIABLE``.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        become_child_subreaper()
        reader, self._orders = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._orders)
            _become(list(argv), reader, parent)
        os.close(reader)
        self._status: int | None = None

    def start(self, environment: Mapping[str, str]) -> None:
        """Begin, with these variables beside our own."""
        os.write(self._orders, json.dumps(dict(environment)).encode())
        os.close(self._orders)

    def give_up(self) -> None:
        """It will not be started: end the process that waits for that."""
        os.close(self._orders)
        os.waitpid(self._pid, 0)

    async def wait(self) -> int:
        """Its exit code as a shell has it, once it has ended; whatever it has started is gone by then."""
        ended = asyncio.Event()
        descriptor = os.pidfd_open(self._pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self._reap()

    def _reap(self) -> int:
        _, self._status = os.waitpid(self._pid, 0)
        end_tree()
        code = os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else 128 - code

    def forward(self, number: int) -> None:
        """Pass a signal on to the command, unless it has ended."""
        if self._status is None:
            os.kill(self._pid, number)

    async def stop(self, seconds: float) -> None:
        """Ask it to end (SIGTERM), and kill it with all that it has started if it has not ended in time.

        Cancelled when it has ended: ``wait`` tells.
        """
        self.forward(signal.SIGTERM)
        self.forward(signal.SIGCONT)  # one that Ctrl-Z has stopped would not end
        await asyncio.sleep(seconds)
        if self._status is None:
            signal_tree(signal.SIGKILL)


def _become(argv: list[str], reader: int, parent: int) -> Never:
    """In the fork: wait for the order, and become the command."""
    code = CANNOT_EXECUTE
    try:
        set_attribute(PR_SET_PDEATHSIG, signal.SIGKILL)
        order = b""
        while os.getppid() == parent and (piece := os.read(reader, MESSAGE_BYTES_MAX)):
            order += piece
        if not order:
            os._exit(0)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # which Python ignores, and the command would inherit
        os.execvpe(argv[0], argv, os.environ | json.loads(order))
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException as error:  # the fork must never live on as a second llmux
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_EXECUTE
        sys.stderr.write(f"llmux run: {explain_failure(error, argv[0], None)}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)
