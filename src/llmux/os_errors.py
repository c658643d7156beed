"""Errors of the operating system: whose fault they are, and how they are told."""

import errno
import socket
import ssl

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


def explain_unreachable(error: BaseException | None) -> tuple[str, str]:
    """Why no connection to a server elsewhere was possible, and what to do: without its address, fit for clients."""
    match _innermost(error):
        case socket.gaierror() as failed:
            what = f"the remote server's name cannot be looked up: {reason_of(failed)}"
            return what, "correct the host in url, or this machine's DNS"
        case ssl.SSLCertVerificationError() as failed:
            what = f"the remote server's certificate is not valid here: {failed.verify_message}"
            return what, "correct the host in url, or name its authority by SSL_CERT_FILE"
        case ssl.SSLError() as failed:
            reason = (failed.reason or "unknown").lower().replace("_", " ")
            return f"TLS with the remote server failed: {reason}", "does it speak https on this port?"
        case TimeoutError():
            return "the remote server did not accept a connection in time", "is it reachable from here?"
        case ConnectionRefusedError():
            return "the remote server refuses connections", "start it, or correct the port in url"
        case OSError() as failed:
            return f"the remote server cannot be reached: {reason_of(failed)}", "is it up, and reachable from here?"
        case failed:
            return f"the remote server broke off ({type(failed).__name__})", "does it speak HTTP/1.1 on this port?"


def _innermost(error: BaseException | None) -> BaseException | None:
    """The operating system's or TLS' own error behind a library's."""
    # aiohttp's errors carry it, and are themselves of its class, but without its attributes.
    while error is not None:
        inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
        if not isinstance(inner, BaseException) or inner is error:
            break
        error = inner
    return error
