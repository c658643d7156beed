"""llmux itself is stopped for a while (SIGSTOP), and goes on."""

import asyncio
import signal
from pathlib import Path

from tests.support.bench import OFFLOAD, SLOW, serving, with_flags

LIMIT_SECONDS = 4.0


async def test_what_waits_while_llmux_is_stopped_does_not_time_out_for_it(tmp_path: Path) -> None:
    models = {"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}
    waiting = {"request_timeout_seconds": LIMIT_SECONDS}
    async with serving(models, tmp_path, policy=waiting, drain_timeout_seconds=LIMIT_SECONDS) as bench:
        async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.expect("b"))
            await bench.until_internal_state("a", "draining")
            bench.server.process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(LIMIT_SECONDS + 1.0)  # It is the time that has to pass.
            finally:
                bench.server.process.send_signal(signal.SIGCONT)
            await bench.until_internal_state("a", "draining")
            await bench.let_go("a")
            await stream.read()
            assert stream.is_complete
        assert bench.server.find_in_log("llmux did not run for a while")
