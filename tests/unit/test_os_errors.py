"""What an error of the operating system is told as, and whose fault it is."""

import errno
import os

import pytest

from llmux.os_errors import describe, is_own_shortage, reason_of


@pytest.mark.parametrize(
    ("error", "reason", "described"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"),
            "no space left on device",
            "no space left on device: /x/y (free space or inodes there)",
        ),
        (
            OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
            "too many open files",
            "too many open files (raise the limit on open files (ulimit -n))",
        ),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "input/output error", "input/output error"),
        (OSError("/x/y is odd"), "OSError", "/x/y is odd"),
    ],
)
def test_clients_are_told_no_path(error: OSError, reason: str, described: str) -> None:
    assert (reason_of(error), describe(error)) == (reason, described)


def test_only_a_lack_of_this_process_is_its_own() -> None:
    assert all(is_own_shortage(OSError(number, "")) for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM))
    assert not any(map(is_own_shortage, (OSError(errno.ECONNREFUSED, ""), ValueError(), None)))
