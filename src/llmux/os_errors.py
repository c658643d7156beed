"""Errors of the operating system: whose fault they are, and how they are told."""

import errno

_SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))
_REMEDIES = {
    errno.ENOSPC: "free space or inodes there",
    errno.EDQUOT: "free space there, or raise the quota",
    errno.EROFS: "it is mounted read-only",
    errno.EACCES: "check its permissions",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the whole machine has too many files open",
    errno.EAGAIN: "raise the limit on processes (ulimit -u)",
}


def is_own_shortage(error: BaseException | None) -> bool:
    """Whether llmux itself was refused a file descriptor, memory or a port by its machine.

    When a connection fails for that reason, it says nothing about the peer, and it may succeed in a moment.
    """
    return isinstance(error, OSError) and error.errno in _SHORTAGES


def reason_of(error: OSError) -> str:
    """What happened, without where: fit for clients, who are told no paths."""
    reason = error.strerror
    return f"{reason[:1].lower()}{reason[1:]}" if reason else type(error).__name__


def describe(error: OSError) -> str:
    """A reason for an operator: what, where, and a remedy if there is one."""
    reason = reason_of(error) if error.strerror else str(error) or reason_of(error)
    where = "" if error.filename is None else f": {error.filename}"
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{reason}{where}" + ("" if remedy is None else f" ({remedy})")
