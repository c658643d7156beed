"""What messages tell whom: clients the cause, operators everything, and everybody the key to change."""

import errno
import socket

import pytest

from llmux.errors import ControlCallFailed, EngineDied, EngineUnavailable, FailureReason, ListenFailed

REASON = FailureReason("it ended; its last lines: api_key=hush", "it ended")


def test_clients_are_told_the_cause_alone() -> None:
    assert str(EngineUnavailable("m", REASON, 2.0)) == (
        "the engine of 'm' could not be started: it ended; next try in 2 s"
    )
    assert str(EngineDied("m", REASON)) == "the engine of 'm' died before it answered: it ended"
    assert str(EngineDied("m", FailureReason("plain"))).endswith(": plain")


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (
            ControlCallFailed("POST /sleep", "status 500: hush", 500),
            "the engine did not answer POST /sleep but with status 500",
        ),
        (
            ControlCallFailed("POST /sleep", "Cannot connect to host 127.0.0.1:1"),
            "the engine did not answer POST /sleep",
        ),
        (ControlCallFailed("GET /x", "no answer", is_timeout=True), "the engine did not answer GET /x in time"),
    ],
)
def test_a_failed_call_has_a_cause_without_the_engines_words(failure: ControlCallFailed, cause: str) -> None:
    assert failure.cause == cause


@pytest.mark.parametrize(
    ("key", "host", "error", "message"),
    [
        (
            "port",
            "127.0.0.1",
            OSError(
                errno.EADDRINUSE, "error while attempting to bind on address ('127.0.0.1', 80): address already in use"
            ),
            "cannot listen on 127.0.0.1:80 (port): address already in use; "
            "set port to another one, or stop what listens there",
        ),
        (
            "metrics_port",
            "::1",
            OSError(errno.EADDRINUSE, "x"),
            "cannot listen on [::1]:80 (metrics_port): address already in use; "
            "set metrics_port to another port, or to 0 for none",
        ),
        (
            "admin_port",
            "127.0.0.1",
            PermissionError(errno.EACCES, "x"),
            "cannot listen on 127.0.0.1:80 (admin_port): permission denied; "
            "set admin_port to another port, or remove it for none",
        ),
        (
            "port",
            "192.0.2.1",
            OSError(errno.EADDRNOTAVAIL, "x"),
            "cannot listen on 192.0.2.1:80 (host): cannot assign requested address; "
            "set host to an address of this machine",
        ),
        (
            "metrics_port",
            "nowhere",
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "cannot listen on nowhere:80 (host): Name or service not known; set host to an address of this machine",
        ),
    ],
)
def test_a_listener_that_fails_names_its_key(key: str, host: str, error: OSError, message: str) -> None:
    assert str(ListenFailed(key, host, 80, error)) == message
