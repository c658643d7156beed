"""Ports, directories, open files, memory and processes of this machine."""

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llmux.hosts import local
from llmux.hosts.local import (
    MIB,
    NoFreePort,
    available_mib,
    choose_ports,
    create_temporary_directory,
    encode_name,
    fixed_ports,
    is_free,
    read_ephemeral_ports,
    remove_temporary_directory,
    size_mib,
)


def test_ports_are_distinct_free_and_not_ephemeral() -> None:
    ports = choose_ports(20)
    assert len(set(ports)) == 20
    allowed = fixed_ports(read_ephemeral_ports())
    assert all(port in allowed for port in ports)
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            assert not is_free(port)


def test_taken_ports_and_ports_in_use_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_ = free = sorted(choose_ports(3))
    monkeypatch.setattr(local, "fixed_ports", lambda ephemeral: free)
    with socket.create_server(("127.0.0.1", first)):
        assert choose_ports(1, taken={free[1]}) == [free[2]]


def test_a_port_used_on_all_addresses_is_not_free() -> None:
    with socket.create_server(("", 0)) as server:
        assert not is_free(server.getsockname()[1])


def test_too_few_free_ports_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = choose_ports(1)
    monkeypatch.setattr(local, "fixed_ports", lambda ephemeral: range(port, port + 1))
    with pytest.raises(NoFreePort, match="in the configuration"):
        choose_ports(2)


@pytest.mark.parametrize(
    ("ephemeral", "ports"),
    [
        ((32_768, 60_999), range(10_000, 32_768)),
        ((1_024, 60_999), range(61_000, 65_536)),
        ((1_024, 65_535), range(10_000, 65_536)),
    ],
)
def test_fixed_ports_are_outside_the_ephemeral_range(ephemeral: tuple[int, int], ports: range) -> None:
    assert fixed_ports(ephemeral) == ports


@pytest.mark.parametrize("content", [None, "", "1 2 3", "x y"])
def test_an_unreadable_ephemeral_range_is_taken_to_be_the_default(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "range"
    if content is not None:
        file.write_text(content)
    assert read_ephemeral_ports(file) == (32_768, 60_999)


@pytest.mark.parametrize(
    ("model", "name"),
    [("qwen", "qwen"), ("org/model", "org%2Fmodel"), ("..", "%2E%2E"), ("a b", "a%20b"), ("m.2", "m.2")],
)
def test_encode_name(model: str, name: str) -> None:
    assert encode_name(model) == name


def test_long_names_are_shortened_and_stay_distinct() -> None:
    names = {encode_name("organisation/" + "x" * 300 + end) for end in ("a", "b")}
    assert len(names) == 2
    assert all(len(name) <= 24 and "/" not in name for name in names)
    assert encode_name("organisation-x/////////").startswith("organisation-x~"), "no half of an encoded character"


def test_directories_are_private_distinct_and_short(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    model = "an-organisation/" + "model" * 50
    directories = [create_temporary_directory(model), create_temporary_directory(model, deep)]
    assert directories[0] != directories[1]
    for directory in directories:
        assert directory.stat().st_mode & 0o777 == 0o700
        assert len(str(directory)) + 1 + 36 <= 107, "a socket named by a UUID fits"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(directory / ("x" * 36)))
        remove_temporary_directory(directory)
        assert not directory.exists()
        remove_temporary_directory(directory)


def test_the_parent_directory_is_used_if_its_path_is_short_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SOCKET_PATH_BYTES", 4_096)
    parent = create_temporary_directory("parent")
    directory = create_temporary_directory("model", parent)
    assert directory.parent == parent
    remove_temporary_directory(parent)


def test_the_limit_on_open_files_is_raised_and_client_connections_fit_in_it() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        clients = local.connections_that_fit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(before[1], local.FILES_MAX)
        assert hard == before[1]
        assert 2 * clients < soft
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_size_of_files_is_that_of_all_of_them_or_unknown(tmp_path: Path) -> None:
    one, gone = tmp_path / "one", tmp_path / "gone"
    one.write_bytes(bytes(2 * MIB))
    assert size_mib([one, one]) == 4
    assert size_mib([one, gone]) == 0


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://0.0.0.0:80"),
        ("*", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:80"),
        ("name", "http://name:80"),
    ],
)
def test_the_url_of_a_listener(host: str, url: str) -> None:
    assert local.url_of(host, 80) == url


def test_some_memory_is_available() -> None:
    assert available_mib() > 0


def test_memory_of_processes_while_they_live_and_after() -> None:
    script = "import sys; held = bytearray(b'x') * (64 << 20); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        found = [one for one in local.find_descendants(os.getpid()) if one.pid == process.pid]
        assert 64 <= local.held_mib(found) < 128
        assert local.find_living(found) == [process.pid]
        process.kill()
        process.wait()
        assert local.held_mib(found) == 0
        assert local.find_living(found) == []


def test_a_process_that_does_not_exist_has_no_descendants() -> None:
    assert local.find_descendants(4_194_304) == []


def test_what_a_process_holds_is_counted_without_the_files_that_it_has_mapped(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(48 << 20))
    script = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ);"
        "mapped[::4096]; shared = mmap.mmap(-1, 32 << 20); shared.write(b'x' * (32 << 20));"
        "held = bytearray(b'x') * (64 << 20); print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        found = [one for one in local.find_descendants(os.getpid()) if one.pid == process.pid]
        assert 96 <= local.resident_mib(found) < 128 < local.held_mib(found)
        process.kill()
        process.wait()
        assert local.resident_mib(found) == 0
