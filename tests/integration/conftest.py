"""Fixtures for tests that start servers."""

import socket

import pytest


def free_port() -> int:
    """A port of this machine on which nothing listens at the moment; see ``unused_ports``."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def unused_ports() -> tuple[int, int]:
    """Two ports of this machine on which nothing listens at the moment.

    Another process may take one before the test does; only for what cannot be told to listen on port 0.
    """
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        return int(first.getsockname()[1]), int(second.getsockname()[1])
