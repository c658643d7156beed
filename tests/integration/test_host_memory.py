"""What sleeping engines hold of host memory is measured, shown and bounded: real processes with real memory."""

import re
from pathlib import Path
from typing import Any

from llmux.hosts.local import total_mib
from tests.support.bench import OFFLOAD, Bench, serving, with_flags
from tests.support.command import run_llmux

HELD_MIB = 256
"""Of an engine awake; half of it is weights, which are held asleep too."""
HEAVY = with_flags(OFFLOAD, "--sim-hold-memory", str(2 * HELD_MIB))
QUICK = {"policy_type": "fifo", "min_active_seconds": 0.0}
LEFT = r"the model keeps less while it is off the GPU .*"


async def held_mib(bench: Bench, model: str) -> int:
    return int((await bench.status())["models"][model]["host_mib"] or 0)


async def asleep(bench: Bench, model: str) -> None:
    """Have a model answer, and put it to sleep."""
    await bench.expect(model)
    assert (await bench.call("POST /control/sleep", {"model": model})).status == 200


async def test_what_a_sleeper_holds_is_shown(tmp_path: Path) -> None:
    async with serving({"a": HEAVY}, tmp_path) as bench:
        await bench.expect("a")
        assert await held_mib(bench, "a") == 0, "not asleep"
        await asleep(bench, "a")
        assert HELD_MIB <= await held_mib(bench, "a") < 2 * HELD_MIB
        shown = await run_llmux("status", "--url", bench.server.url, directory=None)
        assert re.search(r"sleeping:Offload\+KeepRunning .*\([0-9]+ MiB of host memory\)", shown.output)
        metrics = (await bench.call("GET /metrics")).text
        found = re.search(r'^llmux_host_memory_bytes\{model="a"\} (\S+)', metrics, re.MULTILINE)
        assert found is not None and float(found[1]) == await held_mib(bench, "a") << 20


async def test_above_the_maximum_the_sleeper_that_is_missed_least_is_stopped(tmp_path: Path) -> None:
    async with serving({"a": HEAVY, "b": HEAVY}, tmp_path, policy=QUICK, host_memory_max=f"{2 * HELD_MIB}MiB") as bench:
        await asleep(bench, "a")
        assert await bench.process_state("a") == "sleeping:Offload+KeepRunning"
        await asleep(bench, "b")
        await bench.until_model("a", process_state="not_started", host_mib=None)
        assert await bench.process_state("b") == "sleeping:Offload+KeepRunning"
        assert bench.server.find_in_log(LEFT + r"eviction=retain\+stop model=a reason=host_memory_max")
        await bench.expect("a")
        metrics = (await bench.call("GET /metrics")).text
        assert 'llmux_steps_down_total{eviction="retain+stop",model="a",reason="host_memory_max"} 1.0' in metrics


async def test_what_is_known_not_to_fit_is_discarded_instead(tmp_path: Path) -> None:
    """The process alone would fit."""
    models = {"a": with_flags(HEAVY, "--sim-reload-ms", "1")}
    async with serving(models, tmp_path, policy=QUICK, host_memory_max=f"{HELD_MIB}MiB") as bench:
        await asleep(bench, "a")
        await bench.until_model("a", process_state="not_started")
        await asleep(bench, "a")
        assert await bench.process_state("a") == "sleeping:Discard+KeepRunning"
        assert 0 < await held_mib(bench, "a") < HELD_MIB
        await bench.expect("a", "again")
        assert bench.starts("a") == 2


async def test_a_sleeper_goes_deeper_with_time(tmp_path: Path) -> None:
    policy: dict[str, Any] = {**QUICK, "sleep_deeper_after_seconds": 0.2}
    async with serving({"a": HEAVY}, tmp_path, policy=policy) as bench:
        await asleep(bench, "a")
        await bench.until_model("a", process_state="not_started", pid=None)
        assert bench.server.find_in_log(LEFT + "reason=idle")
        await bench.expect("a")


async def test_sleepers_are_stopped_when_the_machine_gets_short(tmp_path: Path) -> None:
    """It always is here: so much is never available."""
    async with serving({"a": HEAVY}, tmp_path, host_memory_reserve_mib=total_mib() - 1) as bench:
        await asleep(bench, "a")
        await bench.until_model("a", process_state="not_started")
        assert bench.server.find_in_log("the weights are discarded instead of offloaded")
        assert bench.server.find_in_log("host memory is short")
        assert bench.server.find_in_log(LEFT + "reason=host_memory_reserve")
        await bench.expect("a")
