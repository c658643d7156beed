"""The messages as the kernel has them; with the kernel itself they are tested in integration/criu."""

import errno
import struct
from collections.abc import Iterator

import pytest

from llmux.checkpoints import netlink


def header(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 77) + body


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust((len(value) + 3) & ~3, b"\0")


def table(name: str) -> bytes:
    return header(0x0A00, b"\x01\x00\x00\x07" + attribute(2, b"\0\0\0\0") + attribute(1, name.encode() + b"\0"))


class Kernel:
    """Answers what it was told to."""

    def __init__(self, *answers: bytes) -> None:
        self.answers: Iterator[bytes] = iter(answers)
        self.heard = b""

    def __enter__(self) -> "Kernel":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def send(self, data: bytes) -> None:
        self.heard += data

    def recv(self, size: int) -> bytes:
        return next(self.answers)


def test_tables_of_several_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(table("filter") + table("CRIU-1"), table("CRIU-22"), header(3, b"\0\0\0\0"))
    monkeypatch.setattr(netlink, "_opened", lambda: kernel)
    assert netlink.list_tables() == ["filter", "CRIU-1", "CRIU-22"]
    assert kernel.heard == struct.pack("=IHHII", 20, 0x0A01, 0x301, 1, 0) + b"\x01\0\0\0"


def test_deletion_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(header(2, struct.pack("=i", 0)))
    monkeypatch.setattr(netlink, "_opened", lambda: kernel)
    netlink.delete_table("CRIU-1")
    begin, rest = kernel.heard[:20], kernel.heard[20:]
    assert begin == struct.pack("=IHHII", 20, 0x10, 1, 1, 0) + b"\0\0\0\x0a"
    assert rest[:16] == struct.pack("=IHHII", 32, 0x0A02, 5, 2, 0)
    assert rest[16:32] == b"\x01\0\0\0" + struct.pack("=HH", 11, 1) + b"CRIU-1\0\0"
    assert rest[32:] == struct.pack("=IHHII", 20, 0x11, 1, 3, 0) + b"\0\0\0\x0a"


def test_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_opened", lambda: Kernel(header(2, struct.pack("=i", -errno.EPERM))))
    with pytest.raises(PermissionError):
        netlink.list_tables()
