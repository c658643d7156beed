"""Ports that are taken."""

import socket
from collections.abc import Iterator

from llmux.config.settings import Settings
from llmux.diagnosis.findings import Finding, error, ok
from llmux.hosts.local import LOOPBACK, is_free


def check_ports(settings: Settings) -> Iterator[Finding]:
    """Whether llmux and its engines can listen where they are to. A llmux that runs already holds its own ports."""
    own = {"port": settings.port, "metrics_port": settings.metrics_port, "admin_port": settings.admin_port or 0}
    engines = {f"models.{name}.port": model.port for name, model in settings.models.items() if model.port}
    taken = [(key, port) for key, port in own.items() if port and not _can_listen(settings.host, port)]
    taken += [(key, port) for key, port in engines.items() if not is_free(port)]
    for key, port in taken:
        remedy = f"'ss -ltnp sport = :{port}' says by what: stop it, or choose another port; it may be llmux itself"
        yield error(key, f"{port} is taken", remedy)
    count = sum(map(bool, own.values())) + len(engines) - len(taken)
    if count:
        yield ok("ports", f"{count} free: llmux and the engines with a port of their own can listen")


def _can_listen(host: str, port: int) -> bool:
    address = {"*": "", "localhost": LOOPBACK}.get(host, host)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError:
        return False
    return True
