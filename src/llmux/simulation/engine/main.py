"""Starts a simulated engine and ends it in vLLM's ways."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

from aiohttp import web

from llmux.simulation.engine.core import PauseMode, SimulatedEngine, log, log_out_of_memory
from llmux.simulation.engine.faults import Fault, Faults
from llmux.simulation.engine.memory import EngineMemory
from llmux.simulation.engine.options import EngineOptions, Timings, parse
from llmux.simulation.engine.server import application
from llmux.simulation.ledger import LedgerError, LedgerFull

DEATH_TO_EXIT_SECONDS = 0.5
"""How long the HTTP server outlives its engine core, as vLLM's does."""
FAILURES_SENT_SECONDS = 0.05
"""Time for the error responses to reach the clients before the process exits."""


def main() -> None:
    """The program ``llmux-sim-engine``; never returns.

    Exit codes: 0 after SIGTERM and after the engine core's death, 1 for a failed start, 2 for a bad command line.
    """
    options, timings, faults = parse(sys.argv[1:])
    worker_pid = _fork_worker(options.worker_linger_seconds) if options.worker else None
    try:
        listener = _bind(options)
        memory = _start(options, faults, worker_pid)
        asyncio.run(_serve(options, timings, faults, memory, worker_pid, listener))
    except LedgerFull as error:
        log_out_of_memory(error)
    except (LedgerError, OSError) as error:
        sys.stderr.write(f"{error}\nEngine core initialization failed.\n")
    sys.exit(1)


def _bind(options: EngineOptions) -> socket.socket:
    """As vLLM does, before anything that takes long, and without removing a socket file that is in the way."""
    if options.uds is not None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(options.uds)
        return listener
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((options.host, options.port))
    return listener


def _start(options: EngineOptions, faults: Faults, worker_pid: int | None) -> EngineMemory:
    log("Initializing a V1 LLM engine (simulated)")
    memory = EngineMemory(options, worker_pid or os.getpid())
    memory.hold(frozenset())
    time.sleep(options.startup_delay_seconds)
    if Fault.START_EXIT in faults:
        log("ERROR EngineCore failed to start: injected failure of the start")
        sys.exit(int(faults.argument(Fault.START_EXIT, "1")))
    if options.adapters and not options.lora:
        log("ERROR RuntimeError: LoRA is not enabled. Use --enable-lora to enable LoRA.")
        sys.exit(1)
    while Fault.START_HANG in faults:
        signal.pause()
    return memory


async def _serve(
    options: EngineOptions,
    timings: Timings,
    faults: Faults,
    memory: EngineMemory,
    worker_pid: int | None,
    listener: socket.socket,
) -> None:
    loop = asyncio.get_running_loop()

    def on_death(at_once: bool) -> None:
        if at_once:
            os._exit(1)
        if not options.stays_when_dead:
            loop.call_later(DEATH_TO_EXIT_SECONDS, os._exit, 0)

    engine = SimulatedEngine(options, timings, faults, memory, on_death)
    async with asyncio.TaskGroup() as tasks:
        runner = web.AppRunner(
            application(engine, tasks.create_task),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=options.keep_alive_seconds,
        )
        await runner.setup()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        if worker_pid is not None:
            _watch_worker(engine, worker_pid, loop)
        await _listen(runner, listener)
        await stopping.wait()
        await _stop(engine)


async def _listen(runner: web.AppRunner, listener: socket.socket) -> None:
    await web.SockSite(runner, listener).start()
    address = runner.addresses[0]
    log("Application startup complete.")
    sys.stdout.write(f"READY {address if isinstance(address, str) else address[1]}\n")
    sys.stdout.flush()


async def _stop(engine: SimulatedEngine) -> None:
    """End the process, unless a fault keeps it, which happens with vLLM too."""
    if Fault.IGNORE_SIGTERM in engine.faults:
        await asyncio.Event().wait()
    await asyncio.sleep(engine.options.stop_delay_seconds)
    if Fault.SIGTERM_HANGS in engine.faults:
        await engine.pause(PauseMode.KEEP)
        await engine.idle()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(engine.options.shutdown_timeout_seconds):
            await engine.idle()
    if engine.running or engine.waiting:
        engine.die("shutdown")
        await asyncio.sleep(FAILURES_SENT_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _fork_worker(linger_seconds: float) -> int:
    """Start a worker process, which owns the GPU memory and outlives its root for a while; returns its pid.

    Must be called before there are threads, sockets or an event loop. The worker learns of its root's end by the
    closing of a pipe, and stays in its root's process group.
    """
    read_end, write_end = os.pipe()
    if pid := os.fork():
        os.close(read_end)
        return pid
    try:
        os.close(write_end)
        for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text("VLLM::Worker", encoding="ascii")
        os.read(read_end, 1)
        time.sleep(linger_seconds)
    finally:
        os._exit(0)


def _watch_worker(engine: SimulatedEngine, worker_pid: int, loop: asyncio.AbstractEventLoop) -> None:
    def on_child_change() -> None:
        with contextlib.suppress(ChildProcessError):
            while (change := os.waitpid(worker_pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED))[0]:
                if os.WIFSTOPPED(change[1]):
                    engine.worker_stopped()
                elif os.WIFCONTINUED(change[1]):
                    engine.worker_goes_on()
                else:
                    engine.die("the worker process died unexpectedly")

    loop.add_signal_handler(signal.SIGCHLD, on_child_change)
    on_child_change()  # It may have died before the handler was there.
