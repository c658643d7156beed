"""The process of a simulated engine, of whatever kind: its start, its port, its worker and its signals."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from aiohttp import web

from llmux.simulation.engine.core import SimulatedEngine, log, log_out_of_memory
from llmux.simulation.engine.faults import Fault, Faults
from llmux.simulation.engine.kind import Kind, Parts, Service
from llmux.simulation.engine.kinds import choose
from llmux.simulation.engine.memory import TAGS, EngineMemory, read_weights
from llmux.simulation.engine.options import EngineOptions, Timings
from llmux.simulation.ledger import LedgerError, LedgerFull


def main() -> None:
    """The program ``llmux-sim-engine``; never returns.

    Exit codes: 0 after SIGTERM, 1 for a failed start, 2 for a bad command line; after the engine core's death that of
    its kind.
    """
    kind, arguments = choose(sys.argv[1:], os.environ)
    options, timings, faults = kind.parse(arguments, os.environ)
    workers = options.ranks if options.worker or options.ranks > 1 else 0
    worker_pids = _fork_workers(kind.worker_name, options.worker_linger_seconds, workers)
    try:
        listener = _bind(options) if kind.binds_first else None
        memory = _start(kind, options, faults, worker_pids)
        asyncio.run(_serve(kind, Start(options, timings, faults, memory, worker_pids), listener or _bind(options)))
    except LedgerFull as error:
        log_out_of_memory(error)
    except (LedgerError, OSError) as error:
        sys.stderr.write(f"{error}\nEngine core initialization failed.\n")
    sys.exit(1)


@dataclass(frozen=True, slots=True)
class Start:
    """What there is before the event loop runs."""

    options: EngineOptions
    timings: Timings
    faults: Faults
    memory: EngineMemory
    worker_pids: tuple[int, ...]


def _bind(options: EngineOptions) -> socket.socket:
    """Take the port, or the socket file, without removing one that is in the way."""
    if options.uds is not None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(options.uds)
        return listener
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((options.host, options.port))
    return listener


def _start(kind: Kind, options: EngineOptions, faults: Faults, worker_pids: tuple[int, ...]) -> EngineMemory:
    log("Initializing a V1 LLM engine (simulated)")
    memory = EngineMemory(options, *(worker_pids or (os.getpid(),)))
    memory.hold(frozenset() if kind.loads_at_start else frozenset(TAGS))
    time.sleep(options.startup_delay_seconds)
    if options.reads_weights and kind.loads_at_start:
        began_at = time.monotonic()
        read_weights(options.model)
        log(f"Loading weights took {time.monotonic() - began_at:.2f} seconds")
    if Fault.START_EXIT in faults:
        log("ERROR EngineCore failed to start: injected failure of the start")
        sys.exit(int(faults.argument(Fault.START_EXIT, "1")))
    if options.adapters and not options.lora:
        log("ERROR RuntimeError: LoRA is not enabled. Use --enable-lora to enable LoRA.")
        sys.exit(1)
    while Fault.START_HANG in faults:
        signal.pause()
    return memory


async def _serve(kind: Kind, start: Start, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        parts = Parts(start.options, start.timings, start.faults, start.memory, tasks.create_task)
        service = kind.build(parts)
        runner = web.AppRunner(
            service.application,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=start.options.keep_alive_seconds,
        )
        await runner.setup()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        if start.worker_pids and service.engine is not None:
            _watch_workers(service.engine, start.worker_pids, loop)
        await _listen(runner, listener)
        await stopping.wait()
        await _stop(start, service)


async def _listen(runner: web.AppRunner, listener: socket.socket) -> None:
    await web.SockSite(runner, listener).start()
    address = runner.addresses[0]
    log("Application startup complete.")
    sys.stdout.write(f"READY {address if isinstance(address, str) else address[1]}\n")
    sys.stdout.flush()


async def _stop(start: Start, service: Service) -> None:
    """End the process, unless a fault keeps it, which happens with vLLM too."""
    if Fault.IGNORE_SIGTERM in start.faults:
        await asyncio.Event().wait()
    await asyncio.sleep(start.options.stop_delay_seconds)
    await service.stop()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _fork_workers(name: str, linger_seconds: float, count: int) -> tuple[int, ...]:
    """Start worker processes, which own the GPU memory and outlive their root for a while; returns their pids.

    Must be called before there are threads, sockets or an event loop. The workers learn of their root's end by the
    closing of a pipe, and stay in its process group.
    """
    if not count:
        return ()
    read_end, write_end = os.pipe()
    pids: list[int] = []
    for _ in range(count):
        pid = os.fork()
        if not pid:
            os.close(write_end)
            _work(name, linger_seconds, read_end)
        pids.append(pid)
    os.close(read_end)
    return tuple(pids)


def _work(name: str, linger_seconds: float, root_ends: int) -> NoReturn:
    try:
        for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text(name, encoding="ascii")
        os.read(root_ends, 1)
        time.sleep(linger_seconds)
    finally:
        os._exit(0)


def _watch_workers(engine: SimulatedEngine, pids: tuple[int, ...], loop: asyncio.AbstractEventLoop) -> None:
    stopped: set[int] = set()

    def on_child_change() -> None:
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                while (change := os.waitpid(pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED))[0]:
                    hear(pid, change[1])

    def hear(pid: int, status: int) -> None:
        if os.WIFSTOPPED(status):
            stopped.add(pid)
            engine.worker_stopped()
        elif os.WIFCONTINUED(status):
            stopped.discard(pid)
            if not stopped:
                engine.worker_goes_on()
        else:
            engine.die("a worker process died unexpectedly")

    engine.look_at_workers = on_child_change
    loop.add_signal_handler(signal.SIGCHLD, on_child_change)
    on_child_change()  # One may have died before the handler was there.
