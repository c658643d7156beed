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
        "models: {a: {model_path: x, eviction: retain+cuda_suspend}, b: {model_path: y, drain: wait}}\n"
        "max_sleeping: 1\n"
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


def test_models_that_cannot_freeze_are_advised_and_pass_with_strict(tmp_path: Path) -> None:
    file = tmp_path / "llmux.yaml"
    file.write_text(f"models: {{a: {{model_path: x}}, b: {{model_path: y}}}}\nvllm_command: {sys.executable}\n")
    result = CliRunner().invoke(APP, ["-c", str(file), "--strict"])
    assert result.exit_code == 0
    (advice,) = [line for line in result.stdout.splitlines() if "advice: " in line]
    assert "a, b: retain+stop cannot keep its requests" in advice and "drain: wait" in advice


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
    assert data.pop("advice") == []
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


@pytest.mark.parametrize(
    ("model", "is_advised"),
    [
        ("drain: freeze, eviction: offload+keep_running", True),
        ("drain: freeze, eviction: discard+checkpoint", True),
        ("drain: freeze, eviction: retain+checkpoint", False),
        ("drain: wait, eviction: offload+keep_running", False),
        ("drain: freeze, eviction: offload+keep_running, extra_args: [--kv-offloading-size, '8']", False),
        ("drain: freeze, engine: sglang, eviction: offload+keep_running", False),
    ],
)
def test_to_keep_the_kv_cache_of_frozen_requests_is_advised_and_not_demanded(
    model: str, is_advised: bool, tmp_path: Path
) -> None:
    file = tmp_path / "llmux.yaml"
    file.write_text(
        f"models: {{a: {{model_path: x, command: {sys.executable}, {model}}}, b: {{model_path: x, drain: wait}}}}\n"
        f"checkpoint: {{images_dir: {tmp_path}}}\n"
    )
    result = CliRunner().invoke(APP, ["-c", str(file), "--json"])
    assert result.exit_code == 0
    advice = json.loads(result.stdout)["advice"]
    assert [each["path"] for each in advice] == (["models.a.extra_args"] if is_advised else [])
    printed = CliRunner().invoke(APP, ["-c", str(file)]).stdout
    assert ("  advice: models.a.extra_args: what frozen requests had computed is lost" in printed) is is_advised
