"""Connections of clients to an engine that is dumped and restored."""

import asyncio
import http.client
import json
from pathlib import Path

import pytest

from llmux.checkpoints import firewall
from tests.support.real_criu import ANSWER_SECONDS, CRIU, SKIP_REASON, Engine, new_checkpointer, started

pytestmark = [pytest.mark.criu, pytest.mark.skipif(not CRIU, reason=SKIP_REASON)]


def connect(engine: Engine) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=ANSWER_SECONDS)
    assert ask(connection) == 1
    return connection


def ask(connection: http.client.HTTPConnection) -> int:
    """The engine's count of requests; raises if the connection is broken."""
    connection.auto_open = 0 if connection.sock else 1
    connection.request("GET", "/")
    return int(json.loads(connection.getresponse().read())["count"])


async def test_an_established_connection_survives(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path)) as engine:
        connection = connect(engine)
        for cycle in range(2):
            manifest = await engine.dump()
            assert len(manifest.firewall_tables) == 1
            assert await asyncio.to_thread(firewall.list_tables) >= set(manifest.firewall_tables)
            await engine.restore()
            assert not set(manifest.firewall_tables) & await asyncio.to_thread(firewall.list_tables)
            assert ask(connection) == cycle + 2
        connection.close()


async def test_deleting_an_image_deletes_its_firewall_table(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path)) as engine:
        connection = connect(engine)
        manifest = await engine.dump()
        assert await asyncio.to_thread(firewall.list_tables) >= set(manifest.firewall_tables)
        await engine.checkpointer.delete(engine.path)
        assert not set(manifest.firewall_tables) & await asyncio.to_thread(firewall.list_tables)
        connection.close()


async def test_an_image_is_restored_again_while_its_connection_is_open(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path)) as engine:
        connection = connect(engine)
        await engine.dump()
        for _ in range(3):
            await engine.restore()
            assert (await engine.get())["count"] == 2
            engine.process.kill()
            await engine.process.wait_gone()
        connection.close()
