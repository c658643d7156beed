import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llmux.cli.main import application
from llmux.config.policy import PolicyType
from llmux.gpus.hook import VARIABLE
from llmux.simulation.gpus import HOOK
from llmux.simulation.ledger import Ledger

TRACE = "timestamp,model,prompt_tokens,output_tokens\n0,a,100,10\n1,b,100,10\n2,a,100,10\n"
CONFIG = "models: {a: {model_path: a, eviction: offload+keep_running}, b: {model_path: b}}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(TRACE)
    Path("c.yaml").write_text(CONFIG)
    return tmp_path


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(application, ["simulate", *arguments])


def test_all_policies_beside_the_bound(here: Path) -> None:
    result = simulate("t.csv", "-c", "c.yaml", "--costs", "2", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert list(document["policies"]) == [*PolicyType, "fifo+freeze", "evict_when_idle"]
    assert document["requests"] == 3
    assert 0 < document["lower_bound"]["ttft"]["mean"] <= document["policies"]["fifo"]["ttft"]["mean"]


def test_a_table_without_a_configuration(here: Path) -> None:
    result = simulate("x=t.csv", "--policy", "fifo", "--policy", "time_slice,fifo")
    assert result.exit_code == 0, result.output
    rows = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert rows[:7] == ["on", "fifo", "time_slice", "first", "fifo", "time_slice", "lower"]


def test_the_gpus_of_the_configuration_and_who_was_on_them(here: Path) -> None:
    models = "models: {a: {model_path: a, gpu_memory: 6GiB}, b: {model_path: b, gpu_memory: 6GiB, gpus: [1]}}"
    Path("g.yaml").write_text(f"gpus: [{{memory: 8GiB}}, {{memory: 8GiB}}]\n{models}\n")
    document = json.loads(simulate("t.csv", "-c", "g.yaml", "--costs", "2", "--policy", "fifo", "--json").stdout)
    run = document["policies"]["fifo"]
    assert {name: list(gpu["models"]) for name, gpu in run["gpus"].items()} == {"0": ["a"], "1": ["b"]}
    assert run["gpus"]["0"]["held"]["max"] == 0.75
    assert run["switches_by_cause"] == {"first": 2, "forced": 0, "unforced": 0}
    shown = simulate("t.csv", "-c", "g.yaml", "--costs", "2", "--policy", "fifo").stdout
    assert "2 switches: 2 first, 0 forced by memory, 0 not forced" in shown


def test_models_share_the_gpus_of_this_machine_where_the_configuration_leaves_that_open(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized = "eviction: offload+keep_running, extra_args: [--gpu-memory-utilization, '0.4']"
    models = f"models: {{a: {{model_path: a, {sized}}}, b: {{model_path: b, {sized}}}}}"
    Path("open.yaml").write_text(f"cache_dir: {here}\n{models}\n")
    arguments = ["t.csv", "-c", "open.yaml", "--costs", "2", "--policy", "fifo"]
    monkeypatch.setenv(VARIABLE, HOOK)
    turns = simulate(*arguments)
    assert "not simulated, as nothing says it: share_gpus (which GPUs there are" in turns.stderr
    assert "  all GPUs " in turns.stdout
    Ledger(here / "gpu-0.json").create(1000)
    monkeypatch.setenv("LLMUX_SIM_LEDGER", str(here / "gpu-{gpu}.json"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    shared = simulate(*arguments)
    assert "  GPU 0 " in shared.stdout and "0 forced by memory" in shared.stdout
    assert not shared.stderr
    assert "llmux: not simulated" not in simulate("t.csv", "--policy", "fifo").stderr


def test_programs_with_gpu_leases(here: Path) -> None:
    models = "models: {a: {model_path: a, gpu_memory: 6GiB}, b: {model_path: b, gpu_memory: 6GiB, gpus: [1]}}"
    Path("g.yaml").write_text(f"gpus: [{{memory: 8GiB}}, {{memory: 8GiB}}]\n{models}\n")
    arguments = ["t.csv", "-c", "g.yaml", "--costs", "2", "--policy", "fifo", "--lease", "3GiB@0.5+1"]
    run = json.loads(simulate(*arguments, "--lease", "allx2@40+5", "--json").stdout)["policies"]["fifo"]
    assert run["gpu_leases"] == [{"asked_at": 0.5, "held_at": 0.5, "ended_at": 1.5}], "the trace has ended before 40 s"
    assert "GPU leases: 1 of 1 held, after 0.000 s at most" in " ".join(simulate(*arguments).stdout.split())


def test_reading_ahead(here: Path) -> None:
    Path("long.csv").write_text("timestamp,model,prompt_tokens,output_tokens\n0,a,10,4000\n12,b,100,10\n")
    arguments = ["long.csv", "--costs", "10", "--costs", "read=4", "--policy", "fifo"]
    run = json.loads(simulate(*arguments, "--disk-rate", "1GB", "--json").stdout)["policies"]["fifo"]
    assert (run["read_ahead"]["whole"], run["read_ahead"]["saved_seconds"]) == (1, 4.0)
    shown = simulate(*arguments, "--disk-rate", "1GB").stdout
    assert "read ahead: all files of 1 of 2 wakes that read any, 4.00 s saved" in " ".join(shown.split())
    unknown = simulate("long.csv", "--policy", "fifo", "--disk-rate", "1GB")
    assert "not simulated, as nothing says it: prefetch of a, b (how large" in " ".join(unknown.stderr.split())


TURNS = "timestamp,model,prompt_tokens,output_tokens\n" + "".join(f"{5 * n},{'ab'[n % 2]},80,20\n" for n in range(80))
SIZED = "{model_path: a, gpu_memory: 20GiB}"
LARGE = f"gpus: [{{memory: 24GiB}}]\nmodels:\n  a: {SIZED}\n  b: {SIZED}\n"


def test_tuning_proposes_what_can_be_pasted(here: Path) -> None:
    Path("turns.csv").write_text(TURNS)
    Path("large.yaml").write_text(LARGE)
    arguments = ["turns.csv", "-c", "large.yaml", "--tune", "--costs", "2", "--policy", "fifo"]
    arguments += ["--least-memory", "a=9GiB", "--least-memory", "b=9GiB"]
    shown = simulate(*arguments)
    assert shown.exit_code == 0, shown.output
    assert "  a:\n    gpu_memory: 12GiB\n  b:\n    gpu_memory: 12GiB\n" in shown.stdout
    document = json.loads(simulate(*arguments, "--json").stdout)
    assert (document["policy"], document["requests"], document["holds"]) == ("fifo", 80, True)
    assert document["second_half"]["together"]["switches"] == 2


def test_tuning_uses_the_configurations_policy_and_the_batch_limit(here: Path) -> None:
    Path("turns.csv").write_text(TURNS)
    Path("large.yaml").write_text(f"{LARGE}policy: {{policy_type: cost_aware}}\n")
    document = json.loads(
        simulate("turns.csv", "-c", "large.yaml", "--tune", "--tune-runs", "3", "--batch-limit", "1", "--json").stdout
    )
    assert document["policy"] == "cost_aware"
    assert document["runs"] <= 4 and not document["complete"]


def test_costs_and_speeds_are_used(here: Path) -> None:
    slow = json.loads(simulate("t.csv", "--costs", "20", "--prefill", "10", "--decode", "1", "--json").stdout)
    quick = json.loads(simulate("t.csv", "--costs", "0", "--json").stdout)
    assert slow["policies"]["fifo"]["ttft"]["mean"] > 10 > quick["policies"]["fifo"]["ttft"]["mean"]


def test_recompute_of_a_kept_cache_takes_less(here: Path) -> None:
    Path("long.csv").write_text(
        "timestamp,model,prompt_tokens,output_tokens\n0,a,80000,1000\n12,b,100,10\n", encoding="utf-8"
    )
    arguments = ["long.csv", "--costs", "2", "--policy", "fifo+freeze", "--json"]
    lost, kept = (
        json.loads(simulate(*arguments, *more).stdout)["policies"]["fifo+freeze"]
        for more in ((), ("--recompute", "0.1"))
    )
    assert lost["latency"]["max"] - kept["latency"]["max"] == pytest.approx(9.0, rel=0.05)
    Path("checkpoint.yaml").write_text(
        "models: {a: {model_path: x, eviction: retain+checkpoint}, b: {model_path: y}}\n"
        f"checkpoint: {{images_dir: {here}}}\n"
    )
    whole, computed = (
        json.loads(simulate(*arguments, "-c", "checkpoint.yaml", *more).stdout)["policies"]["fifo+freeze"]
        for more in ((), ("--recompute", "1"))
    )
    assert computed["latency"]["max"] - whole["latency"]["max"] == pytest.approx(10.0, rel=0.05)


def test_pictures(here: Path) -> None:
    result = simulate("t.csv", "--plot", "p.html", "--plot", "p.png", "--plot", "p.svg")
    assert result.exit_code == 0, result.output
    assert Path("p.html").read_text().startswith("<!doctype html>")
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    assert Path("p.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.csv"], 1, "none.csv: the trace cannot be read"),
        (["t.csv", "-c", "none.yaml"], 1, "the file does not exist"),
        (["c=t.csv", "-c", "c.yaml"], 1, "asks for c, which the configuration does not have"),
        (["t.csv", "--costs", "much"], 1, "'much' is not a number of seconds"),
        (["t.csv", "--plot", "p.pdf"], 1, "must be .html, .svg or .png"),
        (["t.csv", "--policy", "lifo"], 2, "there are fifo"),
        (["t.csv", "--decode", "10:20"], 2, "the second not above"),
        (["t.csv", "--decode", "x"], 2, "write tokens a second"),
        (["t.csv", "--thin", "2"], 2, "--thin"),
        (["t.csv", "-c", "c.yaml", "--tune"], 1, "the trace has 3 requests; tuning needs 40"),
        (["t.csv", "--lease", "much"], 2, "is not SIZE@START+SECONDS"),
        (["t.csv", "--lease", "20@1+1"], 2, "is not SIZE@START+SECONDS"),
        (["t.csv", "--lease", "20GiBx0@1+1"], 2, "is not SIZE@START+SECONDS"),
        (["t.csv", "-c", "c.yaml", "--tune", "--tune-runs", "1", "--lease", "1GiB@1.2.3+1"], 2, "is not SIZE@START"),
        (["t.csv", "--disk-rate", "20"], 2, "'20' is not a size, as 2GB"),
        (["t.csv", "--costs", "read=2"], 1, "say with --disk-rate how fast the disk is"),
        (["t.csv", "--tune"], 2, "it needs -c"),
        (["t.csv", "-c", "c.yaml", "--tune", "--policy", "fifo,adaptive"], 2, "one --policy at most"),
        (["t.csv", "-c", "c.yaml", "--tune", "--policy", "evict_when_idle"], 2, "one --policy at most"),
        (["t.csv", "-c", "c.yaml", "--tune", "--policy", "fifo+freeze"], 2, "one --policy at most"),
        (["t.csv", "-c", "c.yaml", "--tune", "--least-memory", "a=9"], 2, "is not MODEL=SIZE"),
        (["t.csv", "-c", "c.yaml", "--tune", "--least-memory", "c=9GiB"], 2, "the model 'c' is not configured"),
    ],
)
def test_wrong_usage(here: Path, arguments: list[str], code: int, message: str) -> None:
    result = simulate(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
