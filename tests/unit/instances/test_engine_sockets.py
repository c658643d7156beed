"""Engines on Unix sockets: those that can listen on one, and what becomes of those that cannot."""

import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from llmux.core.eviction import STOP, Eviction
from llmux.core.states import Asleep, Cold
from llmux.engines.vllm import Vllm
from llmux.errors import FailureReason
from llmux.hosts.local import choose_ports
from llmux.instances.control_calls import ControlSession, EngineEndpoints
from llmux.instances.engine_spec import EngineSpec
from llmux.instances.health import Health
from llmux.instances.instance import Instance
from llmux.instances.outcomes import EvictOutcome
from llmux.instances.socketless import SocketlessPrograms
from tests.support.engines import vllm_engine

OFFLOAD = Eviction.parse("offload+keep_running")
SIMULATED = str(Path(sys.executable).with_name("llmux-sim-engine"))


class Programs:
    """Engines that differ from the simulated one in what they make of ``--uds``. Each start adds a line to a file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._starts = directory / "starts"

    def add(self, name: str, first: str) -> str:
        """An engine that runs ``first``, in which ``words`` are its arguments, before it begins."""
        program = self._directory / name
        lines = [
            f"#!{sys.executable}",
            "import os, sys",
            "words = sys.argv[1:]",
            f"open({str(self._starts)!r}, 'a').write(' '.join(words) + '\\n')",
            *first.splitlines(),
            f"os.execv({SIMULATED!r}, [{SIMULATED!r}, *words])",
        ]
        program.write_text("\n".join(lines))
        program.chmod(0o755)
        return str(program)

    def starts(self) -> list[bool]:
        """Of each start, whether it was told to use a socket."""
        return ["--uds" in line.split() for line in self._starts.read_text().splitlines()]


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


WITHOUT_FLAG = "at = words.index('--uds') if '--uds' in words else len(words); del words[at : at + 2]"
REFUSING = """\
if '--uds' in words:
    sys.exit("{message}" + words[words.index('--uds') + 1])"""


@asynccontextmanager
async def instance_of(
    *flags: str, program: str = SIMULATED, socketless: SocketlessPrograms | None = None, canary_every: int | None = None
) -> AsyncIterator[Instance]:
    spec = EngineSpec(
        vllm_engine("m", "--latency-ms", "0", *flags, program=program),
        port=choose_ports(1)[0],
        start_timeout_seconds=15.0,
        prefers_socket=True,
        canary_every=canary_every,
    )
    async with ControlSession() as session:
        instance = Instance(
            spec,
            EngineEndpoints(session, spec.port),
            lambda reason: None,
            socketless=socketless or SocketlessPrograms(),
        )
        try:
            yield instance
        finally:
            instance.interrupt("the test is over")
            await instance.end()


def socket_of(instance: Instance) -> Path:
    path = instance.upstream.socket_path
    assert path is not None
    return Path(path)


async def test_an_engine_on_a_socket_does_all_that_one_on_a_port_does() -> None:
    async with instance_of(canary_every=1) as instance:
        assert (await instance.wake()).error is None
        path = socket_of(instance)
        assert path.is_socket()
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, "nobody else reaches it"
        assert instance.upstream.address == f"unix:{path}"
        assert await instance.check_health(5.0) is Health.ALIVE
        assert psutil.Process(instance.pid).net_connections("inet") == [], "no port is open"
        outcome = await instance.evict(OFFLOAD)
        assert outcome == EvictOutcome(Asleep(OFFLOAD), host_mib=outcome.host_mib)
        assert (await instance.wake()).canary_seconds > 0
        assert await instance.evict(STOP) == EvictOutcome(Cold())
        assert not path.parent.exists()
        assert await instance.check_health(5.0) is Health.DEAD
        assert (await instance.wake()).error is None
        assert socket_of(instance) != path


async def test_an_engine_that_takes_no_socket_is_not_started_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vllm, "takes_socket", False)
    async with instance_of() as instance:
        assert (await instance.wake()).error is None
        assert instance.upstream.socket_path is None
        assert instance.upstream.port == instance.spec.port


async def test_a_port_that_is_taken_is_no_obstacle_on_a_socket() -> None:
    async with instance_of() as instance:
        server = await stranger_on(instance.spec.port)
        try:
            assert (await instance.wake()).error is None
        finally:
            await server.cleanup()
        assert socket_of(instance).is_socket()


async def stranger_on(port: int) -> web.AppRunner:
    """A stranger that says that it is healthy."""

    async def healthy(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/health", healthy)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner


@pytest.mark.parametrize(
    "message",
    [
        "vllm serve: error: unrecognized arguments: --uds ",
        pytest.param("Error: No such option: --uds ", marks=pytest.mark.slow),
        pytest.param("error: unexpected argument '--uds' found: ", marks=pytest.mark.slow),
    ],
)
async def test_a_program_without_the_flag_is_found_out_once_for_all_of_its_models(
    programs: Programs, message: str
) -> None:
    program = programs.add("strict", REFUSING.format(message=message))
    socketless = SocketlessPrograms()
    for _ in range(2):
        async with instance_of(program=program, socketless=socketless) as instance:
            assert (await instance.wake()).error is None
            assert instance.upstream.address == f"127.0.0.1:{instance.spec.port}"
            assert await instance.check_health(5.0) is Health.ALIVE
    assert programs.starts() == [True, False, False]
    os.utime(program, ns=(1, 1))
    assert program not in socketless, "another version may have it"


async def test_a_program_that_ends_with_a_usage_error_is_tried_on_its_port(programs: Programs) -> None:
    program = programs.add("curt", "if '--uds' in words: sys.exit(2)")
    async with instance_of(program=program) as instance:
        assert (await instance.wake()).error is None
        assert instance.upstream.socket_path is None
    assert programs.starts() == [True, False]


async def test_a_program_that_ignores_the_flag_is_found_on_its_port(programs: Programs) -> None:
    program = programs.add("careless", WITHOUT_FLAG)
    async with instance_of(program=program) as instance:
        for _ in range(2):
            assert (await instance.wake()).error is None
            assert instance.upstream.address == f"127.0.0.1:{instance.spec.port}"
            assert await instance.evict(STOP) == EvictOutcome(Cold())
    assert programs.starts() == [True, True]


async def test_another_wrong_flag_is_not_laid_to_the_socket() -> None:
    socketless = SocketlessPrograms()
    async with instance_of("--no-such-flag", socketless=socketless) as instance:
        outcome = await instance.wake()
        assert outcome.error is not None and "unrecognized arguments: --no-such-flag" in outcome.error.text
        assert SIMULATED not in socketless


async def test_an_engine_that_fails_is_not_started_twice(programs: Programs) -> None:
    program = programs.add("plain", "")
    async with instance_of("--sim-fault", "start-exit:1", program=program) as instance:
        outcome = await instance.wake()
        assert outcome.error is not None and "exit code 1" in outcome.error.text
    assert programs.starts() == [True]


async def test_an_end_in_the_middle_of_the_trial_starts_nothing_more(programs: Programs) -> None:
    program = programs.add("curt", "if '--uds' in words: sys.exit(2)")
    async with instance_of(program=program) as instance:
        instance.interrupt("llmux is ending")
        assert (await instance.wake()).error == FailureReason("llmux is ending")
        assert instance.upstream.socket_path is not None, "a second start, on the port"


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("vllm serve: error: unrecognized arguments: --uds /tmp/x/http", True),
        ("vllm: error: unrecognized arguments: --foo 1 --uds /tmp/x/http", True),
        ("error: unknown flag: --uds", True),
        ("Error: No such option: --uds /tmp/x/http", True),
        ("error: unexpected argument '--uds' found: /tmp/x/http", True),
        ("usage: vllm serve [--uds UDS] [--port PORT]", False),
        ("vllm serve: error: unrecognized arguments: --foo", False),
        ("non-default args: {'uds': '/tmp/x/http'}", False),
    ],
)
def test_which_output_says_that_the_flag_is_unknown(line: str, refused: bool) -> None:
    assert vllm_engine().refuses_socket(["before", line]) is refused
