"""``llmux validate`` over simulated engines: what passes, what fails and why, and the exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmux.simulation.ledger import Ledger
from tests.support.command import run_llmux, write_config
from tests.support.server import SIMULATED_ENGINE, simulated_config

COLUMNS = ["Policy", "Sleep (s)", "Wake (s)", "GPU Before", "GPU After", "GPU Wake (MiB)", "Response", "Pass"]


def configure(directory: Path, *flags: str, with_gpu: bool = True, **top_level: Any) -> None:
    """One model, ``m``, on a virtual GPU unless it has none."""
    ledger = directory / "gpu.json" if with_gpu else None
    write_config(directory, simulated_config({"m": {"extra_args": [*flags]}}, ledger=ledger, **top_level))


def by_policy(document: Any) -> dict[str, Any]:
    return {row["policy"]: row for row in document["policies"]}


async def test_what_passes_by_gpu_memory(tmp_path: Path) -> None:
    configure(tmp_path)
    ended = await run_llmux("validate", "m", "--policies", "offload+keep_running,retain+stop", directory=tmp_path)
    assert ended.code == 0, ended
    head, offload, stop, *rest = ended.output.splitlines()
    assert all(title in head for title in COLUMNS)
    policy, sleep, wake, before, after, woken, *host, response, verdict = offload.split()
    assert (policy, response, verdict) == ("Offload+KeepRunning", "match", "OK")
    assert (before, after, woken) == ("900", "20", "900")
    assert float(sleep) >= 0 and float(wake) >= 0
    assert all(int(mib) > 0 for mib in host)
    assert stop.split()[0] == "Retain+Stop" and stop.split()[3:6] == ["900", "0", "900"]
    assert rest == ["Freed memory was judged by GPU memory.", "All policies passed."]
    assert "starting the engine" in ended.errors
    assert Ledger(tmp_path / "gpu.json").snapshot().allocations == (), "the engine is stopped at the end"


async def test_without_a_gpu_the_hosts_memory_is_the_judge(tmp_path: Path) -> None:
    configure(tmp_path, "--sim-hold-memory", "100", with_gpu=False)
    ended = await run_llmux("--validate", "m", "--config", "config.json", directory=tmp_path)
    assert ended.code == 0, ended
    assert "judged by the host memory" in ended.output
    words = [line.split()[0] for line in ended.output.splitlines()[1:3]]
    assert words == ["Offload+KeepRunning", "Discard+KeepRunning"], "0.7.7's default"
    assert ended.output.splitlines()[1].split()[3:6] == ["-", "-", "-"]


async def test_an_answer_that_changed(tmp_path: Path) -> None:
    """The next policy begins with a fresh engine, which has not gone wrong yet."""
    configure(tmp_path, "--sim-fault", "wake-garbage:1")
    ended = await run_llmux("validate", "m", directory=tmp_path)
    assert ended.code == 1
    first, second = (line.split() for line in ended.output.splitlines()[1:3])
    assert (first[0], first[-2:]) == ("Offload+KeepRunning", ["MISMATCH", "FAIL"])
    # The fault is each engine's, and discarded weights are read again.
    assert (second[0], second[-2:]) == ("Discard+KeepRunning", ["match", "OK"])
    assert "1 of 2 policies failed." in ended.output
    assert "Traceback" not in ended.errors


@pytest.mark.parametrize("with_gpu", [True, False])
async def test_memory_that_is_not_given_back(tmp_path: Path, with_gpu: bool) -> None:
    configure(tmp_path, "--no-enable-sleep-mode", "--sim-hold-memory", "50", with_gpu=with_gpu)
    ended = await run_llmux("validate", "m", "--policies", "offload+keep_running", "--json", directory=tmp_path)
    assert ended.code == 1
    (row,) = ended.document["policies"]
    assert (row["same_answer"], row["passed"]) == (True, False)
    # What keeps memory of a GPU is stopped; the host's is nobody's but the operator's business.
    expected = "holds 900 of its 900 MiB of GPU memory" if with_gpu else "the memory was not freed"
    assert expected in row["reasons"][0]
    assert ended.document["freed_memory_judged_by"] == ("gpu" if with_gpu else "host")


async def test_an_error_is_a_failed_row_and_the_next_policy_follows(tmp_path: Path) -> None:
    configure(tmp_path, "--sim-fault", "wake-500:1")
    policies = "retain+cuda_suspend,retain+checkpoint,offload+keep_running,retain+stop"
    ended = await run_llmux("validate", "m", "--policies", policies, "--json", directory=tmp_path)
    assert ended.code == 1, ended
    rows = by_policy(ended.document)
    assert list(rows) == policies.split(",")
    assert "CUDA processes cannot be suspended here" in rows["retain+cuda_suspend"]["reasons"][0]
    assert "the section 'checkpoint' is missing" in rows["retain+checkpoint"]["reasons"][0]
    assert "injected failure of wake_up" in rows["offload+keep_running"]["reasons"][0]
    assert rows["offload+keep_running"]["gpu_mib"] == {"before": 900, "asleep": 20, "awake": None}
    assert rows["retain+stop"]["passed"]


async def test_a_sleep_that_fails_is_a_failed_row_though_the_engine_was_stopped_instead(tmp_path: Path) -> None:
    configure(tmp_path, "--sim-fault", "sleep-500")
    ended = await run_llmux("validate", "m", "--policies", "offload+keep_running", "--json", directory=tmp_path)
    assert ended.code == 1
    (row,) = ended.document["policies"]
    assert "injected failure of sleep" in row["reasons"][0]
    assert (row["same_answer"], row["gpu_mib"]["asleep"]) == (True, 0)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["validate", "nobody"], 1, "configured models: m"),
        (["checkpoint", "nobody"], 1, "configured models: m"),
        (["restore", "nobody"], 1, "configured models: m"),
        (["validate", "m", "--policies", "offload"], 2, "WEIGHTS+PROCESS"),
        (["validate", "m", "--policies", ","], 2, "no policy"),
        (["checkpoint", "m", "--eviction", "retain+stop"], 2, "makes no image"),
        (["checkpoint", "m"], 1, "criu cannot be used"),
        (["restore", "m"], 1, "criu cannot be used"),
    ],
    ids=str,
)
async def test_what_is_refused(tmp_path: Path, command: list[str], code: int, said: str) -> None:
    configure(tmp_path, checkpoint={"criu_path": "/nowhere/criu", "images_dir": str(tmp_path / "images")})
    ended = await run_llmux(*command, directory=tmp_path)
    assert ended.code == code, ended
    assert said in ended.errors
    assert ended.output == ""
    assert "Traceback" not in ended.errors


@pytest.mark.parametrize("command", ["checkpoint", "restore"])
async def test_images_need_their_section(tmp_path: Path, command: str) -> None:
    configure(tmp_path)
    ended = await run_llmux(command, "m", directory=tmp_path)
    assert ended.code == 1
    assert "add 'checkpoint: {}'" in ended.errors


async def test_an_engine_that_does_not_start(tmp_path: Path) -> None:
    configure(tmp_path, "--sim-fault", "start-exit:3")
    ended = await run_llmux("validate", "m", directory=tmp_path)
    assert ended.code == 1
    assert "exit code 3" in ended.errors
    assert ended.output == ""


CONFIGURATION = """# a comment
models:
  m:   # the model
    model_path: ${WEIGHTS}
    extra_args: [--sim-gpu-ledger, LEDGER, --sim-gpu-memory, "900", --sim-residue, "20",
      --latency-ms, "1", --token-ms, "0"]  # quick
    eviction: retain+stop   # until measured
vllm_command: COMMAND
"""


def written(directory: Path) -> str:
    ledger = Ledger(directory / "gpu.json").create(1000)
    words = {"LEDGER": str(ledger.path), "COMMAND": SIMULATED_ENGINE}
    text = CONFIGURATION
    for word, value in words.items():
        text = text.replace(word, value)
    (directory / "llmux.yaml").write_text(text)
    return text


async def pick(directory: Path, *more: str) -> Any:
    words = ("validate", "m", "-c", "llmux.yaml", "--pick", *more)
    return await run_llmux(*words, directory=directory, WEIGHTS="models/m")


async def test_the_best_eviction_is_written_and_nothing_else_changes(tmp_path: Path) -> None:
    before = written(tmp_path)
    ended = await pick(tmp_path)
    assert ended.code == 0, ended
    after = (tmp_path / "llmux.yaml").read_text()
    (note,) = (line for line in after.splitlines() if "picked by llmux validate" in line)
    assert "there and back:" in note and "retain+stop" in note
    found = next(line for line in after.splitlines() if line.startswith("    eviction: "))
    assert found.endswith("+keep_running   # until measured")
    assert after.replace(note + "\n", "").replace(found, "    eviction: retain+stop   # until measured") == before
    assert "written to llmux.yaml" in ended.errors


async def test_a_dry_run_shows_the_change(tmp_path: Path) -> None:
    before = written(tmp_path)
    ended = await pick(tmp_path, "--dry-run")
    assert ended.code == 0, ended
    assert "-    eviction: retain+stop   # until measured" in ended.output
    assert (tmp_path / "llmux.yaml").read_text() == before


async def test_what_cannot_work_here_is_named_and_costs_no_start(tmp_path: Path) -> None:
    text = "checkpoint: {criu_path: /nowhere/criu, cuda_checkpoint_path: /nowhere/cuda}\n" + written(tmp_path)
    (tmp_path / "llmux.yaml").write_text(text)
    ended = await pick(tmp_path, "--json", "--dry-run")
    assert ended.code == 0, ended
    assert "not tried: retain+checkpoint, offload+checkpoint, discard+checkpoint: criu cannot be used" in ended.errors
    assert "not tried: retain+cuda_suspend, offload+cuda_suspend, discard+cuda_suspend: CUDA" in ended.errors
    document = json.loads(ended.output)
    assert document["picked"].endswith("+keep_running")
    tried = {one["policy"] for one in document["policies"]}
    assert tried == {"offload+keep_running", "discard+keep_running", "retain+stop"}
    assert "-    eviction: retain+stop" in ended.errors


async def test_only_what_was_faithful_is_picked(tmp_path: Path) -> None:
    text = written(tmp_path).replace("--token-ms,", "--sim-fault, wake-garbage, --sim-fault, sleep-500, --token-ms,")
    (tmp_path / "llmux.yaml").write_text(text)
    ended = await pick(tmp_path)
    assert ended.code == 0, ended
    assert "    eviction: retain+stop   # until measured" in (tmp_path / "llmux.yaml").read_text()
    assert "m: retain+stop written" in ended.errors
