"""``make gpu-check`` with the PyTorch of vLLM's CPU build, where a process's own memory takes the GPU's place."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_criu import CRIU
from tests.support.real_criu import SKIP_REASON as NO_CRIU
from tests.support.real_vllm import MISSING, SKIP_REASON

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(bool(MISSING), reason=SKIP_REASON),
    pytest.mark.timeout(240),
]

CHECK = Path(__file__).parents[3] / "bench/gpu/check.py"
SWITCHES = 4
TENSORS_MIB = 192


async def check(directory: Path, *arguments: str) -> tuple[int, Any]:
    """Run the check with small engines; the exit code and its JSON."""
    python = Path(os.environ["LLMUX_TEST_VLLM"]) / "bin" / "python"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CHECK), "--device", "cpu", "--engine-python", str(python)),
        *("--switches", str(SWITCHES), "--size-gib", str(TENSORS_MIB / 1024), "--output", str(directory)),
        *("--directory", str(directory), *arguments),
    )
    code = await process.wait()
    return code, json.loads((directory / "gpu-check.json").read_text())


def must_have_shown(combination: Any) -> None:
    assert combination["switches"] == len(combination["leave_seconds"]) == SWITCHES
    assert combination["freed_mib"] >= 0.9 * TENSORS_MIB
    assert combination["stream_gap_seconds"] > 0
    assert combination["problems"] == []


async def test_engines_that_keep_running(tmp_path: Path) -> None:
    wanted = ("discard+keep_running", "offload+keep_running")
    code, report = await check(tmp_path, *(f"--only={one}" for one in wanted))
    assert code == 0 and report["passed"] and report["complete"]
    assert [one["eviction"] for one in report["combinations"]] == list(wanted)
    for combination in report["combinations"]:
        must_have_shown(combination)
    assert report["together"]["held_mib"] >= 2 * TENSORS_MIB
    beside = report["beside"]
    assert beside["is_pid_visible"] and beside["told_mib"] >= beside["held_mib"]
    assert f"pid {beside['pid']}," in beside["warnings"][0]
    assert "stood still" in (tmp_path / "gpu-check.md").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [], "weights or images were left behind"


@pytest.mark.criu
@pytest.mark.skipif(not CRIU, reason=NO_CRIU)
async def test_engines_in_images(tmp_path: Path) -> None:
    code, report = await check(tmp_path, "--criu", CRIU, "--only=offload+checkpoint")
    assert code == 0, report["problems"]
    must_have_shown(report["combinations"][0])


@pytest.mark.parametrize(
    ("fault", "eviction", "found"),
    [
        ("corrupt-weight", "offload+keep_running", "WRONG CHECKSUM"),
        ("keep-half", "discard+keep_running", "MEMORY NOT FREED"),
        ("keep-memory", "offload+keep_running", "it says that it has left, and holds"),
    ],
)
async def test_a_planted_fault_is_found(tmp_path: Path, fault: str, eviction: str, found: str) -> None:
    code, report = await check(tmp_path, "--plant", fault, f"--only={eviction}")
    assert code == 1 and not report["passed"]
    assert any(found in problem for problem in report["problems"])
