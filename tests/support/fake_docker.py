"""Puts the stand-in for docker where a test can use it: a daemon of its own, and a client program."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.docker import client, daemon
from tests.support.docker.containers import Image

ROOT = Path(__file__).parents[2]
SIMULATED_ENGINE = Image(
    (sys.executable, "-m", "llmux.simulation.engine"), "--host", {"VLLM_SERVER_DEV_MODE": "1", "LANG": "C.UTF-8"}
)
"""An image whose program listens on all addresses of its container, as images of engines do."""


@dataclass(frozen=True, slots=True)
class Docker:
    """A daemon that runs."""

    program: Path
    daemon_pid: int

    def start(self, *words: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a client."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [self.program, *words], stdout=pipe, stderr=pipe, text=True, env={**os.environ, **(environment or {})}
        )

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a client to its end."""
        return subprocess.run([self.program, *words], capture_output=True, text=True, timeout=30, check=False)

    def say(self, *words: str) -> str:
        """What a client prints that must succeed."""
        done = self.call(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.removesuffix("\n")


@contextmanager
def docker(directory: Path, images: Mapping[str, Image]) -> Iterator[Docker]:
    """A daemon with these images and a program ``docker`` in the directory; in the end nothing of it is left.

    The daemon is no descendant of whoever runs the program, so its containers are not either.
    """
    known, program = directory / "images.json", directory / "docker"
    # The path of a Unix socket may have 107 characters, and those of pytest are long.
    sockets = tempfile.TemporaryDirectory()
    address = Path(sockets.name) / "docker.sock"
    known.write_text(json.dumps({name: asdict(image) for name, image in images.items()}))
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{client.__file__}" "{address}" "$@"\n')
    program.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", daemon.__name__, address, known],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"READY\n"
        yield Docker(program, process.pid)
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=30)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            sockets.cleanup()
