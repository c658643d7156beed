"""Starts a simulated engine, listens, and ends as vLLM ends."""

import asyncio
import contextlib
import os
import signal
import sys
import time

from aiohttp import web

from llmux.simulation.engine.faults import Fault, Faults
from llmux.simulation.engine.latency import Timings
from llmux.simulation.engine.memory import EngineMemory
from llmux.simulation.engine.options import EngineOptions, parse
from llmux.simulation.engine.server import application
from llmux.simulation.engine.state import PauseMode, SimulatedEngine, log, log_out_of_memory
from llmux.simulation.engine.worker import fork_worker, has_ended
from llmux.simulation.ledger import LedgerError, LedgerFull

DEATH_TO_EXIT_SECONDS = 0.5
"""How long the HTTP server outlives its engine core."""
LAST_WORDS_SECONDS = 0.05
"""Time for the answers that tell clients of the end."""


def main() -> None:
    """The program ``llmux-sim-engine``; never returns.

    Exit codes: 0 after SIGTERM and after the engine core's death, 1 for a failed start, 2 for a bad command line.
    """
    options, timings, faults = parse(sys.argv[1:])
    worker_pid = fork_worker(options.worker_linger_seconds) if options.worker else None
    try:
        memory = _start(options, faults, worker_pid)
        asyncio.run(_serve(options, timings, faults, memory, worker_pid))
    except LedgerFull as error:
        log_out_of_memory(error)
    except (LedgerError, OSError) as error:
        sys.stderr.write(f"{error}\nEngine core initialization failed.\n")
    sys.exit(1)


def _start(options: EngineOptions, faults: Faults, worker_pid: int | None) -> EngineMemory:
    log("Initializing a V1 LLM engine (simulated)")
    memory = EngineMemory(options, worker_pid or os.getpid())
    memory.hold(frozenset())
    time.sleep(options.startup_delay_seconds)
    if Fault.START_EXIT in faults:
        log("ERROR EngineCore failed to start: injected failure of the start")
        sys.exit(int(faults.argument(Fault.START_EXIT, "1")))
    while Fault.START_HANG in faults:
        signal.pause()
    return memory


async def _serve(
    options: EngineOptions, timings: Timings, faults: Faults, memory: EngineMemory, worker_pid: int | None
) -> None:
    loop = asyncio.get_running_loop()

    def ended(at_once: bool) -> None:
        if at_once:
            os._exit(1)
        if not options.stays_when_dead:
            loop.call_later(DEATH_TO_EXIT_SECONDS, os._exit, 0)

    engine = SimulatedEngine(options, timings, faults, memory, ended)
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
            _watch(engine, worker_pid, loop)
        await _listen(runner, options)
        await stopping.wait()
        await _stop(engine)


async def _listen(runner: web.AppRunner, options: EngineOptions) -> None:
    site = web.UnixSite(runner, options.uds) if options.uds else web.TCPSite(runner, options.host, options.port)
    await site.start()
    address = runner.addresses[0]
    log("Application startup complete.")
    sys.stdout.write(f"READY {address if isinstance(address, str) else address[1]}\n")
    sys.stdout.flush()


def _watch(engine: SimulatedEngine, worker_pid: int, loop: asyncio.AbstractEventLoop) -> None:
    def child_ended() -> None:
        if has_ended(worker_pid):
            engine.die("the worker process died unexpectedly")

    loop.add_signal_handler(signal.SIGCHLD, child_ended)
    child_ended()


async def _stop(engine: SimulatedEngine) -> None:
    """End the process as asked, which is not always what vLLM does."""
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
        await asyncio.sleep(LAST_WORDS_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
