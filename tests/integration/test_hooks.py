"""``engine: hooks``: the operator's shell commands bring real engines onto the GPU and off it."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.integration.conftest import free_port
from tests.support.bench import OFFLOAD, eventually, serving
from tests.support.simulated_engine import is_alive

ENGINE = f"{sys.executable} -m llmux.simulation.engine"


def hooked(directory: Path, ledger: Path, name: str, **more: Any) -> dict[str, Any]:
    """A model whose commands start and kill a simulated engine, and note each call in ``NAME.log``."""
    port, pid, log = free_port(), directory / f"{name}.pid", directory / f"{name}.log"
    memory = f"--sim-gpu-ledger {ledger} --sim-gpu-memory 900"
    start = f"{ENGINE} serve {name} --port {port} --latency-ms 1 --token-ms 0 {memory}"
    return {
        "engine": "hooks",
        "model_path": name,
        "url": f"http://127.0.0.1:{port}",
        "wake_command": f'echo "wake $LLMUX_MODEL $LLMUX_URL" >>{log}; {start} & echo $! >{pid}',
        "sleep_command": f"echo sleep >>{log}; p=$(cat {pid}) && kill $p; "
        f"while kill -0 $p 2>/dev/null; do sleep 0.02; done; true",
        **more,
    }


def calls(directory: Path, name: str) -> list[str]:
    log = directory / f"{name}.log"
    return log.read_text().splitlines() if log.exists() else []


async def test_commands_wake_and_sleep_beside_an_ordinary_engine(tmp_path: Path) -> None:
    model = hooked(tmp_path, tmp_path / "gpu.json", "h")
    async with serving({"h": model, "a": OFFLOAD}, tmp_path) as bench:
        for name in ("h", "a", "h"):
            await bench.expect(name)
        assert calls(tmp_path, "h") == [f"wake h {model['url']}", "sleep", f"wake h {model['url']}"]
        assert (await bench.status())["models"]["h"]["eviction"] == {"weights": "offload", "process": "keep_running"}
    assert calls(tmp_path, "h")[-1] == "sleep", "the end of llmux puts it to sleep"


async def test_after_a_failed_sleep_no_other_model_is_woken_until_it_succeeds(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    model = hooked(tmp_path, tmp_path / "gpu.json", "h")
    model["sleep_command"] = f"test -e {gate} || {{ echo no way; exit 3; }}; {model['sleep_command']}"
    async with serving({"h": model, "a": OFFLOAD}, tmp_path) as bench:
        await bench.expect("h")
        waiting = await bench.begin("a")
        await bench.until_internal_state("h", "stuck")
        failure = (await bench.status())["models"]["h"]["failure"]
        assert "the sleep_command ended with exit code 3; the last lines:" in failure
        assert failure.endswith("no way")
        assert bench.starts("a") == 0
        gate.touch()
        assert await waiting.read_head() == 200
        waiting.leave()


async def test_a_command_that_hangs_is_killed_with_all_it_has_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    model = hooked(tmp_path, tmp_path / "gpu.json", "h")
    model["wake_command"] = f"sleep 600 & echo $! >{child}; echo waiting for nothing; wait"
    model["sleep_command"] = "true"
    async with serving({"h": model, "a": OFFLOAD}, tmp_path, start_timeout_seconds=0.5) as bench:
        answer = await bench.ask("h")
        assert (answer.status, answer.code) == (503, "model_unavailable")
        assert "the wake_command took longer than 0.5 s and was killed" in answer.text
        assert "waiting for nothing" not in answer.text
        assert not is_alive(int(child.read_text()))


async def test_a_wake_command_that_fails_is_followed_by_sleep_and_the_gpu_is_free(tmp_path: Path) -> None:
    model = hooked(tmp_path, tmp_path / "gpu.json", "h")
    model["wake_command"] += "; exit 1"
    async with serving({"h": model, "a": OFFLOAD}, tmp_path) as bench:
        assert (await bench.ask("h")).code == "model_unavailable"
        assert calls(tmp_path, "h") == [f"wake h {model['url']}", "sleep"]
        await bench.expect("a")


async def test_an_engine_that_dies_is_put_to_sleep_and_woken_again(tmp_path: Path) -> None:
    model = hooked(tmp_path, tmp_path / "gpu.json", "h")
    async with serving({"h": model}, tmp_path) as bench:
        await bench.expect("h")
        os.kill(int((tmp_path / "h.pid").read_text()), signal.SIGKILL)
        await bench.expect("h")
        assert [call.split()[0] for call in calls(tmp_path, "h")] == ["wake", "sleep", "wake"]


async def test_the_end_of_llmux_gives_up_a_wake_and_runs_the_sleep_command(tmp_path: Path) -> None:
    model = hooked(tmp_path, tmp_path / "gpu.json", "h")
    slept = tmp_path / "slept"
    model["wake_command"] = f"echo $$$$ >{tmp_path / 'h.pid'}; sleep 600; true"
    model["sleep_command"] = f"touch {slept}"
    async with serving({"h": model}, tmp_path) as bench:
        waiting = await bench.begin("h")
        await eventually(lambda: (tmp_path / "h.pid").exists() and bool((tmp_path / "h.pid").read_text()), "a wake")
        shell = int((tmp_path / "h.pid").read_text())
        assert await bench.server.terminate() == 0
        waiting.leave()
    assert slept.exists()
    assert not is_alive(shell)
