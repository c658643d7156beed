"""The stand-in for docker behaves as docker does where that surprises those who run engines in containers."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from llmux.simulation.engine.text import expected_text
from llmux.simulation.ledger import Ledger
from tests.support.docker.containers import Image
from tests.support.fake_docker import SIMULATED_ENGINE, Docker, docker
from tests.support.processes import is_living, wait_until
from tests.support.simulated_engine import eventually

POLITE = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("ready", os.getpid(), sys.argv[1:], os.environ.get("SECRET"), flush=True)
while True:
    signal.pause()
"""
IMPOLITE = "import signal; print('ready', flush=True); signal.pause()"
FAMILY = """
import os, signal
if os.fork() == 0:
    os.setsid()
    print(os.getpid(), flush=True)
    signal.pause()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
signal.pause()
"""


def python(program: str) -> Image:
    return Image((sys.executable, "-S", "-c", program))


IMAGES = {
    "polite": python(POLITE),
    "impolite": python(IMPOLITE),
    "family": python(FAMILY),
    "two": python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(2)"),
    "missing": Image(("/no/such/program",)),
    "engine": SIMULATED_ENGINE,
}


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Docker]:
    with docker(tmp_path, IMAGES) as started:
        yield started


def line_of(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline().strip()


def pid_of(fake: Docker, name: str) -> int:
    return int(fake.say("inspect", "-f", "{{.State.Pid}}", name))


def exit_code(client: subprocess.Popen[str]) -> int:
    code = client.wait(timeout=30)
    client.communicate()
    return code


def test_a_foreground_run_has_the_output_and_the_exit_code(fake: Docker) -> None:
    done = fake.call("run", "--rm", "two")
    assert (done.returncode, done.stdout, done.stderr) == (2, "out\n", "err\n")
    assert fake.say("ps", "-a", "-q") == ""


def test_the_container_belongs_to_the_daemon_and_knows_only_its_own_environment(fake: Docker) -> None:
    client = fake.start("run", "--name", "n", "polite", "a", "--rm", environment={"SECRET": "s"})
    word, pid, *rest = line_of(client).split()
    assert (word, rest) == ("ready", ["['a',", "'--rm']", "None"])
    assert pid_of(fake, "n") == int(pid)
    parents = [parent.pid for parent in psutil.Process(int(pid)).parents()]
    assert fake.daemon_pid in parents
    assert client.pid not in parents
    fake.say("rm", "-f", "n")
    assert exit_code(client) == 137


def test_variables_are_given_by_value_or_by_name(fake: Docker) -> None:
    for words in (["-e", "SECRET=v"], ["-e", "SECRET"]):
        client = fake.start("run", "--rm", "--name", "n", *words, "polite", environment={"SECRET": "v"})
        assert line_of(client).endswith(" v")
        fake.say("kill", "n")
        assert exit_code(client) == 137


def test_sigterm_to_the_client_is_forwarded(fake: Docker) -> None:
    client = fake.start("run", "--rm", "--name", "n", "polite")
    line_of(client)
    client.terminate()
    assert exit_code(client) == 3
    assert fake.say("ps", "-a", "-q") == ""


def test_without_a_signal_proxy_it_ends_only_the_client(fake: Docker) -> None:
    client = fake.start("run", "--sig-proxy=false", "--name", "n", "polite")
    line_of(client)
    client.terminate()
    assert exit_code(client) == -signal.SIGTERM
    assert fake.say("inspect", "-f", "{{.State.Running}}", "n") == "true"


def test_a_killed_client_leaves_its_container_running_and_its_name_taken(fake: Docker) -> None:
    client = fake.start("run", "--rm", "--name", "n", "polite")
    line_of(client)
    pid = pid_of(fake, "n")
    client.kill()
    assert exit_code(client) == -signal.SIGKILL
    assert is_living(pid)
    assert fake.say("ps", "--format", "{{.Names}} {{.State}}") == "n running"
    again = fake.call("run", "--rm", "--name", "n", "polite")
    assert again.returncode == 125
    assert 'Conflict. The container name "/n" is already in use by container "' in again.stderr
    assert fake.say("stop", "n") == "n"
    assert not is_living(pid)
    assert fake.say("ps", "-a", "-q") == ""


def test_a_container_that_is_not_removed_keeps_its_name_after_its_end(fake: Docker) -> None:
    assert fake.call("run", "--name", "n", "two").returncode == 2
    assert fake.say("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}", "n") == "exited 2 0"
    assert fake.call("run", "--name", "n", "two").returncode == 125
    assert fake.say("ps", "-q") == ""
    assert fake.say("ps", "-a", "--filter", "name=^/n$", "--format", "{{.Status}}") == "Exited (2) 1 second ago"
    assert "is not running" in fake.call("kill", "n").stderr
    assert fake.say("stop", "n") == "n"
    assert fake.say("rm", "n") == "n"
    assert fake.call("run", "--rm", "--name", "n", "two").returncode == 2


def test_stop_kills_what_ignores_sigterm_as_a_first_process_without_a_handler_does(fake: Docker) -> None:
    client = fake.start("run", "--name", "n", "impolite")
    line_of(client)
    client.terminate()
    fake.say("kill", "--signal", "TERM", "n")
    assert fake.say("inspect", "-f", "{{.State.Running}}", "n") == "true"
    fake.say("stop", "-t", "0", "n")
    assert exit_code(client) == 137


def test_with_an_init_it_does_not_ignore_it(fake: Docker) -> None:
    client = fake.start("run", "--rm", "--init", "--name", "n", "impolite")
    line_of(client)
    fake.say("stop", "n")
    assert exit_code(client) == 143


def test_the_end_of_the_first_process_is_the_end_of_all(fake: Docker) -> None:
    client = fake.start("run", "--rm", "--name", "n", "family")
    child = int(line_of(client))
    fake.say("stop", "n")
    assert exit_code(client) == 0
    wait_until(lambda: not is_living(child), "the end of a process that had left the session")


def test_what_is_not_there(fake: Docker) -> None:
    for words in (["stop", "n"], ["kill", "n"], ["rm", "n"], ["wait", "n"]):
        done = fake.call(*words)
        assert (done.returncode, done.stderr) == (1, "Error response from daemon: No such container: n\n")
    done = fake.call("rm", "-f", "n")
    assert (done.returncode, done.stdout) == (0, "")
    done = fake.call("inspect", "n")
    assert (done.returncode, done.stdout, done.stderr) == (1, "[]\n", "error: no such object: n\n")
    assert fake.call("run", "--rm", "unknown").returncode == 125
    done = fake.call("run", "--rm", "--name", "n", "missing")
    assert (done.returncode, "executable file not found" in done.stderr) == (127, True)
    assert fake.say("ps", "-a", "-q") == ""


def test_a_running_container_is_not_removed_without_force(fake: Docker) -> None:
    identifier = fake.say("run", "-d", "--name", "n", "--label", "owner=llmux", "polite")
    assert fake.say("ps", "-q", "--no-trunc", "--filter", "label=owner=llmux") == identifier
    assert "container is running" in fake.call("rm", "n").stderr
    assert json.loads(fake.say("inspect", identifier[:12]))[0]["Name"] == "/n"
    pid = pid_of(fake, "n")
    fake.say("rm", "-f", "n")
    assert not is_living(pid)


def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    with docker(tmp_path, IMAGES) as fake:
        fake.say("run", "-d", "--name", "n", "impolite")
        pid = pid_of(fake, "n")
    assert not is_living(pid)
    done = fake.call("ps")
    assert (done.returncode, "Is the docker daemon running?" in done.stderr) == (1, True)


def address_of(fake: Docker) -> int:
    ports = json.loads(fake.say("inspect", "-f", "{{json .NetworkSettings.Ports}}", "n"))
    return int(ports["8000/tcp"][0]["HostPort"])


async def get(port: int, path: str) -> int:
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:
        async with session.get(path) as response:
            return response.status


async def test_a_published_port_accepts_before_anything_listens_inside(fake: Docker, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    words = ["run", "--rm", "--name", "n", "-p", "127.0.0.1:0:8000", "-e", f"LLMUX_SIM_LEDGER={ledger.path}", "engine"]
    client = fake.start(*words, "serve", "m", "--startup-delay-ms", "1000", "--sim-gpu-memory", "300")

    async def publishes() -> bool:
        return bool(fake.say("ps", "-q"))

    await eventually(publishes, "a container")
    port = address_of(fake)
    with pytest.raises(aiohttp.ClientError):
        await get(port, "/health")
    assert socket.create_connection(("127.0.0.1", port)).close() is None

    async def healthy() -> bool:
        try:
            return await get(port, "/health") == 200
        except aiohttp.ClientError:
            return False

    await eventually(healthy, "an engine in a container")
    (allocation,) = ledger.snapshot().allocations
    assert (allocation.mib, allocation.pid) == (300, pid_of(fake, "n"))
    url = f"http://127.0.0.1:{port}/v1/completions"
    async with aiohttp.request("POST", url, json={"prompt": "x", "max_tokens": 2}) as response:
        said: Any = await response.json()
    assert said["choices"][0]["text"] == expected_text("m", "x", 2)
    taken = fake.call("run", "--rm", "-p", f"127.0.0.1:{port}:8000", "polite")
    assert (taken.returncode, "port is already allocated" in taken.stderr) == (125, True)
    os.kill(client.pid, signal.SIGTERM)
    assert await asyncio.to_thread(exit_code, client) == 0
    assert ledger.snapshot().used_mib == 0


async def test_what_listens_on_the_containers_loopback_is_not_reached(fake: Docker) -> None:
    engine = ["engine", "serve", "m", "--host", "127.0.0.1"]
    client = fake.start("run", "--name", "n", "-p", "127.0.0.1:0:8000", *engine)
    assert await asyncio.to_thread(line_of, client) == "READY 8000"
    with pytest.raises(aiohttp.ClientError):
        await get(address_of(fake), "/health")
    fake.say("rm", "-f", "n")
    await asyncio.to_thread(exit_code, client)


async def test_with_the_hosts_network_addresses_are_the_hosts(fake: Docker) -> None:
    words = ["--network", "host", "engine", "serve", "m", "--host", "127.0.0.1", "--port", "0"]
    client = fake.start("run", "--rm", "--name", "n", *words)
    port = (await asyncio.to_thread(line_of, client)).removeprefix("READY ")
    assert await get(int(port), "/health") == 200
    fake.say("stop", "n")
    assert await asyncio.to_thread(exit_code, client) == 0
