"""Messages to and from the kernel's netfilter, as far as tables of nftables are concerned."""

import os
import socket
import struct
from collections.abc import Iterator

NETLINK_NETFILTER = 12
NFPROTO_INET = 1
SUBSYSTEM_NFTABLES = 10
BATCH_BEGIN = 0x10
BATCH_END = 0x11
NEW_TABLE = SUBSYSTEM_NFTABLES << 8
GET_TABLE = NEW_TABLE | 1
DELETE_TABLE = NEW_TABLE | 2
TABLE_NAME = 1

ERROR = 2
DONE = 3
REQUEST = 0x1
ACKNOWLEDGE = 0x4
DUMP = 0x300

HEADER = struct.Struct("=IHHII")
"""Length, type, flags, sequence, port."""
FAMILY = struct.Struct("!BBH")
"""Family, version, resource."""
ATTRIBUTE = struct.Struct("=HH")
ANSWER_BYTES = 1 << 16
ANSWER_SECONDS = 10.0


def list_tables() -> list[str]:
    """The names of the tables of the family inet; raises OSError."""
    with _opened() as link:
        link.send(_message(GET_TABLE, REQUEST | DUMP, 1, NFPROTO_INET))
        return [name for kind, body in _answers(link) if kind == NEW_TABLE for name in _names(body)]


def delete_table(name: str) -> None:
    """Delete a table of the family inet with all that is in it; raises OSError, ENOENT where there is none."""
    text = name.encode() + b"\0"
    attribute = ATTRIBUTE.pack(ATTRIBUTE.size + len(text), TABLE_NAME) + text
    with _opened() as link:
        link.send(
            _message(BATCH_BEGIN, REQUEST, 1, 0, resource=SUBSYSTEM_NFTABLES)
            + _message(DELETE_TABLE, REQUEST | ACKNOWLEDGE, 2, NFPROTO_INET, attribute)
            + _message(BATCH_END, REQUEST, 3, 0, resource=SUBSYSTEM_NFTABLES)
        )
        for _ in _answers(link):
            continue


def _opened() -> socket.socket:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    link.settimeout(ANSWER_SECONDS)
    link.bind((0, 0))
    return link


def _message(kind: int, flags: int, sequence: int, family: int, attributes: bytes = b"", resource: int = 0) -> bytes:
    body = _padded(FAMILY.pack(family, 0, resource) + attributes)
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def _answers(link: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Each message of an answer, until it is complete; an error raises OSError."""
    while True:
        data = link.recv(ANSWER_BYTES)
        while data:
            length, kind, *_ = HEADER.unpack_from(data)
            body, data = data[HEADER.size : length], data[_aligned(length) :]
            if kind == DONE:
                return
            if kind == ERROR:
                (number,) = struct.unpack_from("=i", body)
                if number:
                    raise OSError(-number, os.strerror(-number))
                return
            yield kind, body


def _names(body: bytes) -> Iterator[str]:
    attributes = body[FAMILY.size :]
    while attributes:
        length, kind = ATTRIBUTE.unpack_from(attributes)
        if kind == TABLE_NAME:
            yield attributes[ATTRIBUTE.size : length].rstrip(b"\0").decode(errors="replace")
        attributes = attributes[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _padded(data: bytes) -> bytes:
    return data.ljust(_aligned(len(data)), b"\0")
