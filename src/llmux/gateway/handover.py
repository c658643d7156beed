"""Giving a connection to another protocol in this process (the control plane's HTTP server)."""

import asyncio


def with_connection_close(head: bytes) -> bytes:
    """The head, asking to close the connection after the answer.

    The other protocol would otherwise keep the connection, and a later request on it for a model would go astray.
    """
    lines = head[:-4].split(b"\r\n")
    kept = [line for line in lines if line[:11].lower() != b"connection:"]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""])


def hand_over(
    transport: asyncio.Transport, protocol: asyncio.Protocol, head: bytes, rest: bytes, *, is_full: bool
) -> None:
    """Let ``protocol`` go on with a connection from the beginning of the request that has just been read."""
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if is_full:
        protocol.pause_writing()
    protocol.data_received(with_connection_close(head) + rest)
