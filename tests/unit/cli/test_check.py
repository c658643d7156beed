"""``llmux check`` reports every problem of a file, and ``llmux schema`` prints the committed schema."""

import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llmux.cli.check import check, schema
from llmux.config.schema import render

FIXTURES = Path(__file__).parents[2] / "fixtures" / "config_077"
APP = typer.Typer()
APP.command()(check)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "good.yaml"
    store = "{endpoint: 'http://x', bucket: b, access_key: k, secret_key: s}"
    file.write_text(
        "models: {a: {model_path: x, eviction: retain+cuda_suspend}, b: {model_path: y}}\nmax_sleeping: 1\n"
        f"policy: {{policy_type: cost_aware}}\ncheckpoint: {{object_store: {store}}}\nvllm_command: {sys.executable}\n"
    )
    return file


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    file = tmp_path / "bad.yaml"
    file.write_text("models: {a: {model_path: x, prot: 1}}\nport: -1\n")
    return file


@pytest.mark.parametrize("option", ["-c", "--config"])
def test_a_usable_file(good: Path, option: str) -> None:
    result = CliRunner().invoke(APP, [option, str(good)])
    first, note = result.stdout.splitlines()
    assert result.exit_code == 0
    assert first == f"{good}: OK, 2 models, policy cost_aware"
    assert note.startswith("  warning: max_sleeping: has no effect")
    assert result.stderr == ""


def test_a_single_model_is_counted_in_the_singular() -> None:
    file = FIXTURES / "sleep.json"
    first, note = CliRunner().invoke(APP, ["-c", str(file)]).stdout.splitlines()
    assert first == f"{file}: OK, 1 model, policy adaptive"
    assert note.startswith("  warning: vllm_command: the program '/opt/engines/bin/vllm' does not exist")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_with_strict_a_warning_makes_the_check_fail(tmp_path: Path, options: list[str]) -> None:
    file = tmp_path / "llmux.yaml"
    file.write_text(f"models: {{a: {{model_path: x}}}}\nvllm_command: {sys.executable}\n")
    assert CliRunner().invoke(APP, ["-c", str(file), "--strict", *options]).exit_code == 0
    file.write_text("models: {a: {model_path: /no/such/model}}\n")
    assert CliRunner().invoke(APP, ["-c", str(file), *options]).exit_code == 0
    assert CliRunner().invoke(APP, ["-c", str(file), "--strict", *options]).exit_code == 1


def test_each_problem_has_its_line_on_stderr(bad: Path) -> None:
    result = CliRunner().invoke(APP, ["-c", str(bad)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{bad}: models.a.prot: unknown key (did you mean 'port'?)",
        f"{bad}: port: must be greater than or equal to 0",
    ]


def test_config_json_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(APP, [])
    assert result.exit_code == 1
    assert result.stderr.startswith("config.json: the file does not exist")


def test_json_of_a_usable_file(good: Path) -> None:
    result = CliRunner().invoke(APP, ["-c", str(good), "--json"])
    data = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [problem["path"] for problem in data.pop("warnings")] == ["max_sleeping"]
    assert data == {"file": str(good), "ok": True, "models": ["a", "b"], "policy": "cost_aware", "problems": []}


def test_json_of_an_unusable_file(bad: Path) -> None:
    result = CliRunner().invoke(APP, ["-c", str(bad), "--json"])
    data = json.loads(result.stdout)
    assert result.exit_code == 1
    assert data["ok"] is False
    assert [set(problem) for problem in data["problems"]] == [{"path", "message", "remedy"}] * 2
    assert result.stderr == ""


def test_the_schema_is_printed_unchanged() -> None:
    app = typer.Typer()
    app.command()(schema)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert result.stdout == render()
