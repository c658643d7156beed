import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llmux.cli.main import application
from llmux.config.policy import PolicyType

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
    assert list(document["policies"]) == list(PolicyType)
    assert document["requests"] == 3
    assert 0 < document["lower_bound"]["ttft"]["mean"] <= document["policies"]["fifo"]["ttft"]["mean"]


def test_a_table_without_a_configuration(here: Path) -> None:
    result = simulate("x=t.csv", "--policy", "fifo", "--policy", "time_slice,fifo")
    assert result.exit_code == 0, result.output
    rows = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert rows[:4] == ["first", "fifo", "time_slice", "lower"]


def test_costs_and_speeds_are_used(here: Path) -> None:
    slow = json.loads(simulate("t.csv", "--costs", "20", "--prefill", "10", "--decode", "1", "--json").stdout)
    quick = json.loads(simulate("t.csv", "--costs", "0", "--json").stdout)
    assert slow["policies"]["fifo"]["ttft"]["mean"] > 10 > quick["policies"]["fifo"]["ttft"]["mean"]


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
    ],
)
def test_wrong_usage(here: Path, arguments: list[str], code: int, message: str) -> None:
    result = simulate(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
