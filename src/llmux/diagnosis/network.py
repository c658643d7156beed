"""Ports that llmux and its engines cannot listen on."""

import errno
import socket
from collections.abc import Callable, Iterator

from llmux.config.settings import Settings
from llmux.diagnosis.findings import Finding, error, ok, unknown
from llmux.hosts.local import LOOPBACK


def find_refusal(host: str, port: int) -> OSError | None:
    """Why nothing can listen there now; None if something can."""
    address = {"*": "", "localhost": LOOPBACK}.get(host, host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Engines and llmux set it too: connections in TIME_WAIT do not prevent listening.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as refusal:
        return refusal
    return None


def check_ports(
    settings: Settings, find_refusal: Callable[[str, int], OSError | None] = find_refusal
) -> Iterator[Finding]:
    """Whether llmux and its engines can listen where they are to. A llmux that runs already holds its own ports."""
    own = {"port": settings.port, "metrics_port": settings.metrics_port, "admin_port": settings.admin_port or 0}
    wanted = [(key, settings.host, port) for key, port in own.items() if port]
    wanted += [(f"models.{name}.port", LOOPBACK, model.port) for name, model in settings.models.items() if model.port]
    usable = 0
    for key, host, port in wanted:
        refusal = find_refusal(host, port)
        if refusal is None:
            usable += 1
        else:
            yield _refused(key, host, port, refusal)
    if usable:
        yield ok("ports", f"{usable} free: llmux and the engines with a port of their own can listen")


def _refused(key: str, host: str, port: int, refusal: OSError) -> Finding:
    if refusal.errno == errno.EADDRINUSE:
        remedy = f"'ss -ltnp sport = :{port}' says by what: stop it, or choose another port; it may be llmux itself"
        return error(key, f"{port} is taken", remedy)
    if refusal.errno in (errno.EACCES, errno.EPERM):
        remedy = (
            f"choose a higher port, or 'sysctl -w net.ipv4.ip_unprivileged_port_start={port}', or "
            "AmbientCapabilities=CAP_NET_BIND_SERVICE of systemd"
        )
        return error(key, f"this user may not listen on {port}", remedy)
    # An address that is not this machine's, or a name that is not known, is one of the configuration's findings.
    return unknown(key, f"whether {port} is free: {host} cannot be listened on: {refusal.strerror or refusal}")
