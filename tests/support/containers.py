"""A small stand-in for docker: containers whose processes descend from a daemon, not from the client that runs them.

``docker run --name NAME WORD...`` stays in the foreground until the container has ended, which lives on when the client
is killed. ``docker stop NAME`` returns when it is gone; without such a container it fails. As docker's client does,
``run`` fails if there is a container of the name already.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

DAEMON = r"""
import json, os, socketserver, subprocess, sys, threading

containers = {}
log = open(sys.argv[2], "a", buffering=1)

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        verb, *words = json.loads(self.rfile.readline())
        print(verb, *words[:2], file=log)
        status, text = self.run_container(*words[1:]) if verb == "run" else self.stop_container(words[-1])
        try:
            self.wfile.write(json.dumps([status, text]).encode())
        except OSError:
            pass

    def run_container(self, name, *words):
        if name in containers:
            return 125, f"Conflict. The container name {name} is already in use"
        containers[name] = process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        status = process.wait()
        del containers[name]
        return status, ""

    def stop_container(self, name):
        process = containers.get(name)
        if process is None:
            return 1, f"Error response from daemon: No such container: {name}"
        process.kill()
        process.wait()
        return 0, name

class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

server = Server(sys.argv[1], Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("READY", flush=True)
sys.stdin.read()
for process in list(containers.values()):
    process.kill()
    process.wait()
os._exit(0)
"""

CLIENT = r"""
import json, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.sendall(json.dumps(sys.argv[2:]).encode() + b"\n")
status, text = json.loads(connection.makefile().read())
print(text, file=sys.stderr if status else sys.stdout)
sys.exit(status)
"""


@dataclass(frozen=True, slots=True)
class Docker:
    """The client's program, and a record of what it was asked for."""

    program: str
    record: Path

    @property
    def calls(self) -> list[str]:
        """All calls so far: the verb and its first words."""
        return self.record.read_text().splitlines()

    def stop(self, name: str) -> None:
        """Stop a container behind llmux's back."""
        subprocess.run([self.program, "stop", name], check=True, capture_output=True)

    def begin(self, name: str, *words: str) -> "subprocess.Popen[bytes]":
        """Run a container that llmux does not know of."""
        return subprocess.Popen([self.program, "run", "--name", name, *words])


@contextmanager
def docker(directory: Path) -> Iterator[Docker]:
    """A daemon, and a client for it in the directory; in the end no container is left."""
    with TemporaryDirectory(dir="/tmp") as short:
        address, program, record = Path(short) / "socket", directory / "docker", directory / "docker-calls"
        record.touch()
        client = directory / "client.py"
        client.write_text(CLIENT)
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{client}" "{address}" "$@"\n')
        program.chmod(0o755)
        pipe = subprocess.PIPE
        command = (sys.executable, "-S", "-c", DAEMON, str(address), str(record))
        daemon = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True, env=dict(os.environ))
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        try:
            assert daemon.stdout.readline() == b"READY\n"
            yield Docker(str(program), record)
        finally:
            daemon.stdin.close()
            daemon.stdout.close()
            daemon.wait(30)
