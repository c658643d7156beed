"""The program ``docker``: sends its command line to the daemon and prints what that says. Standard library only.

What it may be killed with is its own affair: the container belongs to the daemon.
"""

import json
import os
import signal
import socket
import sys
from typing import Any

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(address: str, words: list[str]) -> int:
    """Returns the exit code."""
    try:
        connection = _ask(address, words)
    except OSError:
        where = f"unix://{address}"
        return _fail(words, f"Cannot connect to the Docker daemon at {where}. Is the docker daemon running?")
    for line in connection.makefile("rb"):
        frame: dict[str, Any] = json.loads(line)
        if "out" in frame:
            _write(1, frame["out"])
        if "err" in frame:
            _write(2, frame["err"])
        if "forward_to" in frame:
            _forward(address, frame["forward_to"])
        if "exit" in frame:
            return int(frame["exit"])
    return _fail(words, "error waiting for container: unexpected EOF")


def _ask(address: str, words: list[str]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    connection.sendall(json.dumps({"words": words, "environment": dict(os.environ)}).encode() + b"\n")
    return connection


def _forward(address: str, container: str) -> None:
    def forward(number: int, _: object) -> None:
        with _ask(address, ["kill", "--signal", str(number), container]) as connection:
            connection.makefile("rb").read()

    for number in FORWARDED:
        signal.signal(number, forward)


def _write(descriptor: int, text: str) -> None:
    data = text.encode(errors="surrogateescape")
    while data:
        data = data[os.write(descriptor, data) :]


def _fail(words: list[str], message: str) -> int:
    is_run = words[:1] == ["run"]
    _write(2, f"docker: {message}\n" if is_run else f"{message}\n")
    return 125 if is_run else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
