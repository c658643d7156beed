"""Engines' sockets under a whole server: who gets one, what is shown of it, and that nothing of it stays behind."""

import stat
from pathlib import Path

import psutil

from llmux.hosts.local import choose_ports
from tests.support.bench import OFFLOAD, Bench, eventually, serving


async def address_of(bench: Bench, model: str) -> str | None:
    address: str | None = (await bench.status())["models"][model]["address"]
    return address


async def test_engines_without_a_port_have_a_socket_and_the_others_their_port(tmp_path: Path) -> None:
    (port,) = choose_ports(1)
    async with serving({"a": OFFLOAD, "b": {**OFFLOAD, "port": port}}, tmp_path) as bench:
        assert await address_of(bench, "a") is None
        await bench.expect("a")
        await bench.expect("b")
        await bench.expect("a")
        address = await address_of(bench, "a")
        assert address is not None and address.startswith(f"unix:{bench.temporary}/")
        directory = Path(address.removeprefix("unix:")).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert bench.engine("a").net_connections("inet") == []
        assert await address_of(bench, "b") == f"127.0.0.1:{port}"
        assert [one.laddr.port for one in bench.engine("b").net_connections("inet") if one.status == "LISTEN"] == [port]


async def test_a_killed_llmux_leaves_no_socket(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        engine = bench.engine("a")
        bench.server.process.kill()
        await eventually(lambda: not psutil.pid_exists(engine.pid), "the end of the engine")
        await eventually(lambda: not list(bench.temporary.iterdir()), "the end of its directory")


async def test_engines_that_may_be_dumped_keep_to_ports(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path, checkpoint={"images_dir": str(tmp_path / "images")}) as bench:
        await bench.expect("a")
        address = await address_of(bench, "a")
        assert address is not None and address.startswith("127.0.0.1:")
