"""What of ``make gpu-check`` needs no PyTorch; tests/integration/vllm has the check itself, without a GPU."""

import asyncio
import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
from scripts import collect_wheels

from bench.gpu import engine
from bench.gpu.beside import Beside
from bench.gpu.check import SKIPPED, Trials
from bench.gpu.machine import Machine, every_eviction
from bench.gpu.programs import EngineProgram
from bench.gpu.report import Report
from bench.gpu.resident import ResidentMemory
from bench.gpu.switches import Combination, Plan, Together, why_refused
from llmux.core.eviction import Eviction, Process, Weights
from llmux.engines.vllm import Vllm
from tests.support.engines import vllm_engine

CHECK = Path(__file__).parents[2] / "bench/gpu/check.py"

H200 = Machine(
    device="cuda",
    gpu="NVIDIA H200",
    gpu_mib=143771,
    driver="580.159.04",
    driver_cuda="13.0",
    torch="2.11.0",
    torch_cuda="13.0",
    engine_python="3.12.3",
    python="3.12.3",
    kernel="6.18",
    cpus=16,
    host_mib=131072,
    criu="4.2.1",
    criu_refusal=None,
    cuda_plugin=True,
    cuda_checkpoint=None,
    cuda_bindings=True,
    llmux="1.0",
)
BARE = replace(
    H200, device="cpu", gpu=None, driver=None, criu=None, criu_refusal="criu cannot be used", cuda_plugin=False
)


def plan(directory: Path) -> Plan:
    program = EngineProgram(sys.executable, "cpu", "mark")
    return Plan(program, ResidentMemory("mark"), directory, 3200, 896, 20, "criu", print)


def possible(machine: Machine) -> list[str]:
    return [str(one) for one in every_eviction() if machine.why_not(one) is None]


async def test_without_pytorch_it_is_skipped_loudly() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CHECK), "--engine-python", sys.executable),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == SKIPPED == 77
    assert output == b""
    assert errors.startswith(b"SKIPPED: ") and b"has no PyTorch" in errors


def test_the_engine_understands_the_command_line_that_vllm_gets() -> None:
    vllm: Vllm = vllm_engine("a", "--max-num-seqs", "8", "--kv-cache-memory-bytes", "1G", "--weights-mib", "64")
    on_socket = engine.parse(list(vllm.command_line(7000, Path("/run/a/http")))[1:])
    assert (on_socket.command, on_socket.uds, on_socket.enable_sleep_mode) == ("serve", "/run/a/http", True)
    assert on_socket.served_model_name == list(vllm.served_names)
    assert on_socket.kv_cache_memory_bytes == 1 << 30
    on_port = engine.parse(list(vllm.command_line(7000))[1:])
    assert (on_port.host, on_port.port, on_port.uds) == ("127.0.0.1", 7000, None)


def test_each_of_the_twelve_combinations_is_tried_or_has_its_reason() -> None:
    assert len(set(every_eviction())) == 12
    assert possible(H200) == [
        *("discard+keep_running", "offload+keep_running"),
        *("retain+cuda_suspend", "discard+cuda_suspend", "offload+cuda_suspend"),
        *("retain+checkpoint", "discard+checkpoint", "offload+checkpoint"),
        "retain+stop",
    ]
    assert possible(BARE) == ["discard+keep_running", "offload+keep_running", "retain+stop"]


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (replace(H200, driver="550.54.15"), "needs driver 570 or later, and this is 550.54.15"),
        (
            replace(H200, cuda_bindings=False),
            "neither the Python package cuda-bindings nor the program cuda-checkpoint",
        ),
        (BARE, "needs an NVIDIA GPU"),
    ],
)
def test_why_a_process_cannot_be_suspended(machine: Machine, reason: str) -> None:
    assert reason in str(machine.why_not(Eviction(Weights.RETAIN, Process.CUDA_SUSPEND)))
    without_plugin = replace(machine, criu_refusal=None, cuda_plugin=False)
    refusal = without_plugin.why_not(Eviction(Weights.RETAIN, Process.CHECKPOINT))
    assert refusal is None if not machine.is_gpu else reason in str(refusal)


async def test_llmux_takes_the_configuration(tmp_path: Path) -> None:
    assert await why_refused(plan(tmp_path), Eviction(Weights.OFFLOAD, Process.KEEP_RUNNING)) is None


async def test_without_a_driver_nothing_can_be_suspended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refusal = await why_refused(plan(tmp_path), Eviction(Weights.RETAIN, Process.CUDA_SUSPEND))
    assert refusal is not None and "cuda-checkpoint" in refusal


def test_a_wrong_answer_or_memory_that_is_not_free_fails_the_check(tmp_path: Path) -> None:
    right = Combination(
        Eviction(Weights.OFFLOAD, Process.KEEP_RUNNING), switches=20, leave_seconds=[0.5], wake_seconds=[1]
    )
    wrong = Combination(Eviction(Weights.RETAIN, Process.STOP), switches=3, problems=["WRONG CHECKSUM: …"])
    passed = Report(H200, plan(tmp_path), Beside(), Together(), [right], 60.0, "2026-11-28")
    assert passed.as_data()["passed"] and passed.as_data()["complete"]
    assert "| `offload+keep_running` | 20 | 0.50 / 0.50 s | 1.00 / 1.00 s | 6.7 / 3.4 |" in passed.markdown()
    for failed in (replace(passed, combinations=[right, wrong]), replace(passed, beside=Beside(problems=["unseen"]))):
        assert failed.problems and not failed.as_data()["passed"]
        assert "**FAILED**" in failed.markdown()
        assert json.loads(json.dumps(failed.as_data()))["machine"]["gpu"] == "NVIDIA H200"


def test_a_check_that_ran_out_of_time_says_so(tmp_path: Path) -> None:
    short = Combination(Eviction(Weights.RETAIN, Process.STOP), switches=12, leave_seconds=[1], wake_seconds=[9])
    report = Report(H200, plan(tmp_path), Beside(), Together(), [short], 480.0, "2026-11-28")
    assert not report.is_complete and "12 of 20" in report.markdown() and "INCOMPLETE" in report.markdown()


def test_what_there_was_no_time_for_is_reported_as_such(tmp_path: Path) -> None:
    trials = Trials(Namespace(only=["retain+stop", "offload+keep_running"]), H200, plan(tmp_path))
    trials.give_up()
    report = Report(H200, plan(tmp_path), Beside(), Together(), trials.results, 510.0, "2026-11-28")
    assert [str(one.eviction) for one in trials.results] == ["offload+keep_running", "retain+stop"]
    assert not report.is_complete and report.problems == []
    assert report.markdown().count("| not tried |") == 2


def test_every_dependency_travels_as_a_wheel() -> None:
    wanted = collect_wheels.requirements()
    assert {"hatchling", "editables", "aiohttp>=3.11"} <= set(wanted)
    assert any(one.startswith("uvloop") for one in wanted) and not any(";" in one for one in wanted)
