"""Why a port cannot be listened on decides what is said of it."""

import errno
import os
import socket

import pytest

from llmux.config.settings import Settings
from llmux.diagnosis.findings import Level
from llmux.diagnosis.network import check_ports, find_refusal


def settings(**model: int) -> Settings:
    described = {"models": {"m": {"model_path": "x"} | model}, "port": 3000, "metrics_port": 0}
    return Settings.model_validate(described)


@pytest.mark.parametrize(
    ("number", "level", "found", "remedy"),
    [
        (errno.EADDRINUSE, Level.ERROR, "3000 is taken", "ss -ltnp sport = :3000"),
        (errno.EACCES, Level.ERROR, "may not listen on 3000", "net.ipv4.ip_unprivileged_port_start=3000"),
        (errno.EADDRNOTAVAIL, Level.UNKNOWN, "Cannot assign requested address", ""),
    ],
)
def test_the_reason_is_said(number: int, level: Level, found: str, remedy: str) -> None:
    (one,) = check_ports(settings(), lambda host, port: OSError(number, os.strerror(number)))
    assert one.what == "port" and one.level is level
    assert found in one.found and remedy in one.remedy


def test_a_port_that_is_free_and_one_of_an_engine_that_is_taken() -> None:
    taken = OSError(errno.EADDRINUSE, "in use")
    engine, rest = check_ports(settings(port=3001), lambda host, port: taken if port == 3001 else None)
    assert engine.what == "models.m.port" and engine.level is Level.ERROR
    assert rest.level is Level.OK and rest.found.startswith("1 free")


def test_real_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refusal = find_refusal("localhost", taken.getsockname()[1])
    assert refusal is not None and refusal.errno == errno.EADDRINUSE
    assert find_refusal("127.0.0.1", 0) is None
    assert isinstance(find_refusal("no.such.name.invalid", 0), socket.gaierror)
