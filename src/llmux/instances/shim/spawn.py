"""Starts the engine in a session of its own, with pipes for its output, or says why it cannot be started."""

import os
import signal
from typing import Never

from .conditions import IGNORED_SIGNALS, block_io_uring

REASON_BYTES = 65_536


class SpawnError(Exception):
    """The engine could not be started; the text tells the operator why."""


def spawn(
    argv: list[str], environment: dict[str, str], directory: str | None, without_io_uring: bool
) -> tuple[int, tuple[int, int]]:
    """Start the engine; returns its pid and the read ends of its stdout and stderr. Raises OSError, SpawnError."""
    out_reader, out_writer = os.pipe()
    err_reader, err_writer = os.pipe()
    failure_reader, failure_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        become_engine(argv, environment, directory, without_io_uring, (out_writer, err_writer), failure_writer)
    for descriptor in (out_writer, err_writer, failure_writer):
        os.close(descriptor)
    failure = os.read(failure_reader, REASON_BYTES)
    os.close(failure_reader)
    if failure:
        os.waitpid(pid, 0)
        os.close(out_reader)
        os.close(err_reader)
        raise SpawnError(failure.decode(errors="replace"))
    return pid, (out_reader, err_reader)


def become_engine(
    argv: list[str],
    environment: dict[str, str],
    directory: str | None,
    without_io_uring: bool,
    outputs: tuple[int, int],
    failure_writer: int,
) -> Never:
    """In the forked child: undo what the shim has set for itself, and become the engine."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (*IGNORED_SIGNALS, signal.SIGCHLD, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(outputs[0], 1)
        os.dup2(outputs[1], 2)
        if directory:
            os.chdir(directory)
        if without_io_uring:
            block_io_uring()
        os.execvpe(argv[0], argv, environment)
    except BaseException as error:  # the fork must never live on as a second shim
        os.write(failure_writer, explain_failure(error, argv[0], directory).encode(errors="replace"))
    finally:
        os._exit(127)


def explain_failure(error: BaseException, program: str, directory: str | None) -> str:
    """Why the engine could not be started, and what to do about it."""
    match error:
        case FileNotFoundError() if directory and error.filename == directory:
            return f"the working directory {directory} does not exist"
        case FileNotFoundError() if "/" not in program:
            return f"the command {program!r} was not found on the PATH: install it, or give its whole path"
        case FileNotFoundError() if os.path.exists(program):  # noqa: PTH110
            return f"{program} exists, but the interpreter that its first line names does not"
        case FileNotFoundError():
            return f"the command {program} does not exist"
        case PermissionError():
            return f"{error.filename or program} may not be used ({error.strerror}): check its permissions"
        case _:
            return f"{program} could not be started: {error}"
