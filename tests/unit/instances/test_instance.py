"""What an instance reports of each wake and each eviction, over real processes of the simulated engine."""

import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from llmux.access import Upstream
from llmux.core.eviction import STOP, Eviction, Process
from llmux.core.states import Asleep, Cold
from llmux.errors import FailureReason, ProcessStuck
from llmux.gpus.memory import GpuHeadroom, GpuMemory, GpuProcess
from llmux.hosts.local import choose_ports
from llmux.instances import health
from llmux.instances.control_calls import ControlSession, EngineEndpoints
from llmux.instances.engine_spec import EngineSpec
from llmux.instances.health import Health
from llmux.instances.instance import Instance
from llmux.instances.outcomes import EvictOutcome, SeenMemory, WakeOutcome
from llmux.instances.process import EngineProcess
from llmux.redaction import Redactor
from tests.support.engines import vllm_engine
from tests.support.processes import until

RETAIN = Eviction.parse("retain+keep_running")
OFFLOAD = Eviction.parse("offload+keep_running")


@asynccontextmanager
async def instance_of(
    *flags: str,
    headroom: GpuHeadroom | None = None,
    on_leaving: Callable[[Upstream, Process], None] = lambda upstream, process: None,
    measures_memory: bool = False,
    **fields: Any,
) -> AsyncIterator[Instance]:
    program = fields.pop("program", str(Path(sys.executable).with_name("llmux-sim-engine")))
    options = {key: fields.pop(key) for key in ("environment", "timeouts", "api_key", "model_path") if key in fields}
    spec = EngineSpec(
        vllm_engine("m", "--latency-ms", "0", *flags, program=program, **options),
        port=choose_ports(1)[0],
        start_timeout_seconds=15.0,
        **fields,
    )
    async with ControlSession() as session:
        endpoints = EngineEndpoints(session, spec.port)
        instance = Instance(
            spec,
            endpoints,
            lambda reason: None,
            headroom=headroom,
            on_leaving=on_leaving,
            measures_memory=measures_memory,
        )
        try:
            yield instance
        finally:
            instance.interrupt("the test is over")
            await instance.end()


async def test_no_connection_is_open_when_the_engine_is_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some engines do not end while a client is connected."""
    seen = []
    stop, kill = EngineProcess.stop, EngineProcess.kill

    async def stop_seen(process: EngineProcess, *seconds: float) -> None:
        seen.append(connections_to(process.pid))
        await stop(process, *seconds)

    def kill_seen(process: EngineProcess) -> None:
        seen.append(connections_to(process.pid))
        kill(process)

    async with instance_of(canary_every=1) as instance:
        assert (await instance.wake()).error is None
        assert connections_to(instance.pid) == 1, "kept since the canary"
        with monkeypatch.context() as patch:
            patch.setattr(EngineProcess, "stop", stop_seen)
            await instance.evict(STOP)
        assert (await instance.wake()).error is None
        with monkeypatch.context() as patch:
            patch.setattr(EngineProcess, "kill", kill_seen)
            await instance.end()
    assert seen == [0, 0]


def connections_to(pid: int | None) -> int:
    found = psutil.Process(pid).net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED for one in found)


async def test_start_sleep_wake_and_stop() -> None:
    async with instance_of(freezes=True, canary_every=1) as instance:
        assert await instance.check_health(5.0) is Health.DEAD
        started = await instance.wake()
        assert started.error is None and started.can_freeze and started.canary_seconds > 0
        assert await instance.check_health(5.0) is Health.ALIVE
        outcome = await instance.evict(OFFLOAD)
        assert outcome == EvictOutcome(Asleep(OFFLOAD), host_mib=outcome.host_mib)
        assert outcome.host_mib, "an interpreter at least"
        woken = await instance.wake()
        assert woken.error is None and woken.can_freeze and woken.canary_seconds > 0
        assert await instance.evict(STOP) == EvictOutcome(Cold())
        assert not instance.has_engine
        assert (await instance.wake()).error is None, "the exit of the stopped engine does not fail the next start"


async def test_connections_can_be_closed_before_the_engine_is_stopped() -> None:
    leaving: list[tuple[Upstream, Process, bool]] = []

    def on_leaving(upstream: Upstream, process: Process) -> None:
        leaving.append((upstream, process, instance.has_engine))

    async with instance_of(on_leaving=on_leaving) as instance:
        await instance.wake()
        await instance.evict(OFFLOAD)
        assert leaving == [], "it sleeps with its connections"
        await instance.evict(STOP)
        assert leaving == [(instance.upstream, Process.STOP, True)]


async def test_a_failed_start_says_how_the_engine_ended() -> None:
    async with instance_of("--sim-fault", "start-exit:3") as instance:
        outcome = await instance.wake()
        assert outcome.error is not None and "the engine ended with exit code 3" in outcome.error.text
        assert not outcome.is_out_of_memory and not outcome.is_mismatch
        await instance.end()
        assert instance.pid is None


def talking_engine(directory: Path, line: str) -> str:
    """A program that prints a line, its arguments and its environment, and fails."""
    program = directory / "engine"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\nprint({line!r}, sys.argv, dict(os.environ))\nsys.exit(1)\n"
    )
    program.chmod(0o755)
    return str(program)


async def test_what_an_engine_prints_is_redacted_and_not_for_clients(tmp_path: Path) -> None:
    program = talking_engine(tmp_path, "torch.OutOfMemoryError: CUDA out of memory")
    redactor = Redactor(["swordfish", "opensesame"])
    environment = {"PLAIN": "opensesame", "UNKNOWN_TOKEN": "abracadabra"}
    engine = instance_of("--api-key", "swordfish", program=program, environment=environment, redactor=redactor)
    with capture_logs() as logged:
        async with engine as instance:
            error = (await instance.wake()).error
            await instance.end()
            kept = " ".join(instance.output_tail)
    assert error is not None
    assert error.cause == "the engine ended with exit code 1: out of GPU memory"
    for text in (error.text, kept, str(logged)):
        assert "CUDA out of memory" in text
        assert "***" in text
        assert not any(secret in text for secret in ("swordfish", "opensesame", "abracadabra"))


async def test_a_long_start_says_how_long_and_with_the_engines_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "REPORT_SECONDS", 0.2)
    async with instance_of("--startup-delay-ms", "1000") as instance:
        with capture_logs() as logged:
            assert (await instance.wake()).error is None
    reports = [entry for entry in logged if entry["event"] == "engine is starting"]
    assert reports
    assert reports[-1]["model"] == "m"
    assert "Initializing a V1 LLM engine" in reports[-1]["last_line"]


async def test_a_mismatch_is_not_an_ordinary_error() -> None:
    async with instance_of("--sim-fault", "wake-garbage", canary_every=1) as instance:
        await instance.wake()
        await instance.evict(OFFLOAD)
        outcome = await instance.wake()
        assert outcome.is_mismatch
        assert outcome.error is not None and "after its wake the engine answers the canary with" in outcome.error.text


async def test_a_failed_step_is_replaced_by_stopping_the_engine() -> None:
    async with instance_of("--sim-fault", "sleep-500") as instance:
        await instance.wake()
        outcome = await instance.evict(OFFLOAD)
        assert (outcome.residency, outcome.error) == (Cold(), None)
        assert outcome.fallback is not None
        assert outcome.fallback.startswith(
            "eviction failed, stopping the engine instead: POST /sleep?level=1: status 500"
        )
        assert outcome.deviation_from(OFFLOAD) == outcome.fallback
        assert instance.pid is None


async def test_without_images_a_checkpoint_stops_the_engine() -> None:
    async with instance_of() as instance:
        await instance.wake()
        outcome = await instance.evict(Eviction.parse("retain+checkpoint"))
        assert outcome.residency == Cold()
        assert "the section 'checkpoint' is missing" in (outcome.fallback or "")


async def test_too_little_host_memory_discards_the_weights() -> None:
    async with instance_of(host_memory_reserve_mib=1 << 40) as instance:
        await instance.wake()
        outcome = await instance.evict(OFFLOAD)
        assert outcome.residency == Asleep(Eviction.parse("discard+keep_running"))
        assert outcome.fallback == "the weights are discarded instead of offloaded: too little host memory for them"
        assert (await instance.wake()).error is None


class KillingHeadroom(GpuHeadroom):
    """Kills the engine when memory is read after the eviction, the second time."""

    def __init__(self) -> None:
        super().__init__("m", None, None)
        self.instance: Instance | None = None
        self.reads = 0

    async def read(self) -> tuple[GpuMemory, ...]:
        self.reads += 1
        if self.reads == 2:
            instance = self.instance
            assert instance is not None and instance.pid is not None
            os.kill(instance.pid, signal.SIGKILL)
            await until(lambda: not instance.has_engine, "the report of the exit")
        return ()


async def test_a_sleeper_that_died_while_falling_asleep_is_ended_and_cold() -> None:
    headroom = KillingHeadroom()
    async with instance_of(headroom=headroom) as instance:
        headroom.instance = instance
        await instance.wake()
        outcome = await instance.evict(OFFLOAD)
        assert outcome.residency == Cold()
        assert instance.pid is None, "all of it is gone"
        assert "killed by SIGKILL" in (outcome.deviation_from(OFFLOAD) or "")


async def test_an_engine_that_does_not_die_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with instance_of() as instance:
        await instance.wake()
        with monkeypatch.context() as patch:

            async def stop(*arguments: Any) -> None:
                raise ProcessStuck([7], 1.0)

            patch.setattr(EngineProcess, "stop", stop)
            outcome = await instance.evict(STOP)
            assert "processes of the engine (pid 7) are still there" in str(outcome.error)
        assert await instance.evict(STOP) == EvictOutcome(Cold())


async def test_an_interrupted_instance_wakes_nothing() -> None:
    async with instance_of() as instance:
        instance.interrupt("llmux is ending")
        assert await instance.wake() == WakeOutcome(FailureReason("llmux is ending"))


def test_deviation() -> None:
    assert EvictOutcome(Asleep(OFFLOAD)).deviation_from(OFFLOAD) is None
    assert EvictOutcome(Cold()).deviation_from(STOP) is None
    assert EvictOutcome(Cold()).deviation_from(OFFLOAD) == "the engine left by Cold() instead"
    assert EvictOutcome(Cold(), "it said 500").deviation_from(OFFLOAD) == "it said 500"


async def test_a_start_that_fails_on_the_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "llmux-m-1"))

    monkeypatch.setattr("llmux.hosts.local.tempfile.mkdtemp", full)
    async with instance_of() as instance:
        outcome = await instance.wake()
        assert str(outcome.error) == f"no space left on device: {tmp_path}/llmux-m-1 (free space or inodes there)"
        assert not instance.has_engine


async def test_a_start_without_a_free_descriptor_says_so_and_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: Any) -> tuple[socket.socket, socket.socket]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("llmux.hosts.local.tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("llmux.instances.shim_connection.socket.socketpair", exhausted)
    async with instance_of() as instance:
        outcome = await instance.wake()
        assert outcome.error is not None
        assert "its shim could not be started: too many open files (raise the limit on open files" in outcome.error.text
        assert list(tmp_path.iterdir()) == []


class Keeping:
    """A GPU whose memory the engine never gives back, as its driver sees it."""

    instance: Instance

    def read_memory(self) -> tuple[GpuMemory, ...]:
        return (GpuMemory("GPU-a", 1000, 900),)

    def read_processes(self) -> tuple[GpuProcess, ...]:
        return (GpuProcess(self.instance.pid or 0, "engine", 900),)


@pytest.mark.parametrize("eviction", [OFFLOAD, RETAIN])
async def test_an_engine_that_says_it_sleeps_and_keeps_its_memory_is_stopped(eviction: Eviction) -> None:
    gpus = Keeping()
    async with instance_of(headroom=GpuHeadroom("m", gpus, None, wait_seconds=0.05)) as instance:
        gpus.instance = instance
        assert (await instance.wake()).error is None
        outcome = await instance.evict(eviction)
        assert outcome.residency == Cold()
        assert outcome.fallback is not None and "holds 900 of its 900 MiB" in outcome.fallback
        assert not instance.has_engine


class KeepingWeights(Keeping):
    """The engine gives back its KV cache, a twentieth of what it holds."""

    def read_processes(self) -> tuple[GpuProcess, ...]:
        self.reads += 1
        return (GpuProcess(self.instance.pid or 0, "engine", 900 if self.reads == 1 else 855),)

    reads = 0


@pytest.mark.parametrize(("eviction", "sleeps"), [(RETAIN, True), (OFFLOAD, False)])
async def test_an_engine_that_is_to_keep_its_weights_may_give_back_little(eviction: Eviction, sleeps: bool) -> None:
    gpus = KeepingWeights()
    async with instance_of(headroom=GpuHeadroom("m", gpus, None, wait_seconds=0.05)) as instance:
        gpus.instance = instance
        assert (await instance.wake()).error is None
        outcome = await instance.evict(eviction)
        assert outcome.residency == (Asleep(eviction) if sleeps else Cold())
        assert instance.has_engine is sleeps


@pytest.mark.parametrize(
    ("asleep", "found"),
    [
        (None, ["weights"]),
        ("discard+keep_running", ["weights"]),
        ("discard+cuda_suspend", ["weights"]),
        ("offload+keep_running", []),
        ("retain+checkpoint", ["image"]),
        ("discard+checkpoint", ["image", "weights"]),
    ],
)
async def test_the_files_that_a_way_back_reads(asleep: str | None, found: list[str], tmp_path: Path) -> None:
    for name in ("model.safetensors", "pages-1.img"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"x")
    files = {
        "weights": tmp_path / "model.safetensors" / "model.safetensors",
        "image": tmp_path / "pages-1.img" / "pages-1.img",
    }
    store: Any = SimpleNamespace(files_of_engine=lambda: [files["image"]])
    async with instance_of(model_path=str(tmp_path / "model.safetensors")) as made:
        made._store = store
        eviction = None if asleep is None else Eviction.parse(asleep)
        assert list(made.files_to_wake(eviction)) == [files[name] for name in found]
        made._store = None


class TwoGpus:
    """Two GPUs, and what the driver says that the engine's processes hold of each, one reading after the other."""

    instance: Instance
    is_in_container = False
    """Whether the driver calls processes by other numbers than llmux does."""

    def __init__(self, *held_mib: tuple[int, int]) -> None:
        self.held_mib = list(held_mib)
        self.used_mib = [(50, 50), (650, 350)]

    def read_memory(self) -> tuple[GpuMemory, ...]:
        first, second = self.used_mib[0] if self.instance.pid is None else self.used_mib[1]
        return (GpuMemory("GPU-a", 1000, first), GpuMemory("GPU-b", 1000, second))

    def read_processes(self) -> tuple[GpuProcess, ...]:
        first, second = self.held_mib.pop(0) if len(self.held_mib) > 1 else self.held_mib[0]
        pid = 4_194_304 if self.is_in_container else self.instance.pid or 0
        return (GpuProcess(pid, "engine", first, "GPU-a"), GpuProcess(pid, "engine", second, "GPU-b"))


@asynccontextmanager
async def measured_instance(gpus: TwoGpus) -> AsyncIterator[Instance]:
    async with instance_of(headroom=GpuHeadroom("m", gpus, None), measures_memory=True) as instance:
        gpus.instance = instance
        yield instance


async def test_what_a_started_engine_holds_of_its_fullest_gpu_is_reported() -> None:
    async with measured_instance(TwoGpus((300, 700))) as instance:
        assert (await instance.wake()).seen == SeenMemory(instance.spec.fingerprint(), 700)


async def test_where_the_driver_has_other_process_numbers_it_is_what_the_used_memory_grew_by() -> None:
    gpus = TwoGpus((300, 700))
    gpus.is_in_container = True
    async with measured_instance(gpus) as instance:
        assert (await instance.wake()).seen == SeenMemory(instance.spec.fingerprint(), 600, is_told=False)
        assert (await instance.evict(OFFLOAD)).seen is None


async def test_what_an_engine_held_and_keeps_is_reported_when_it_leaves() -> None:
    """At its start, before it leaves, and then until it has given back all that it does."""
    gpus = TwoGpus((700, 100), (750, 100), (300, 100), (200, 100), (60, 40))
    async with measured_instance(gpus) as instance:
        await instance.wake()
        seen = (await instance.evict(OFFLOAD)).seen
        assert seen == SeenMemory(instance.spec.fingerprint(), 750, residue_mib=60)
        await instance.wake()
        gpus.held_mib = [(800, 100), (90, 40)]
        assert (await instance.evict(OFFLOAD)).seen == replace(seen, awake_mib=800, residue_mib=None), "once a process"
        await instance.wake()
        assert (await instance.evict(STOP)).seen is not None


async def test_without_placement_by_memory_nothing_is_measured() -> None:
    gpus = TwoGpus((700, 100))
    async with instance_of(headroom=GpuHeadroom("m", gpus, None, wait_seconds=0.0)) as instance:
        gpus.instance = instance
        assert (await instance.wake()).seen is None
        assert (await instance.evict(STOP)).seen is None
