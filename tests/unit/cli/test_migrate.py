"""``llmux migrate`` writes a file, or to standard output, and says on standard error what is left out."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llmux.cli.main import load_command
from llmux.cli.migrate import migrate
from llmux.config.migration.convert import convert

APP = typer.Typer()
APP.command()(migrate)
SWAP = "models:\n  a:\n    cmd: llama-server --port ${PORT} -m /a.gguf -c 8192\n    unlisted: true\n"


@pytest.fixture
def swap(tmp_path: Path) -> Path:
    file = tmp_path / "swap.yaml"
    file.write_text(SWAP)
    return file


def test_standard_output_has_the_file_and_standard_error_the_summary(swap: Path) -> None:
    result = CliRunner().invoke(APP, [str(swap)])
    assert result.exit_code == 0
    assert result.stdout == convert(SWAP, "swap.yaml").text
    first, second, *remarks = result.stderr.splitlines()
    assert first == f"{swap}: a configuration of llama-swap; models: 1 llama_cpp"
    assert second == "Not carried over as it was (each has a comment in the file):"
    assert [remark.split(": ")[:2] for remark in remarks[:2]] == [["  a", "--port"], ["  a", "unlisted"]]
    assert [remark.split(": ")[0] for remark in remarks[2:]] == ["  -listen"]


def test_the_output_is_written_once_and_never_replaced(swap: Path, tmp_path: Path) -> None:
    output = tmp_path / "llmux.yaml"
    result = CliRunner().invoke(APP, [str(swap), "--output", str(output)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert output.read_text() == convert(SWAP, "swap.yaml").text
    assert result.stderr.splitlines()[-1] == f"Written: {output}. Next: llmux check -c {output}"
    output.write_text("mine")
    again = CliRunner().invoke(APP, [str(swap), "-o", str(output)])
    assert again.exit_code == 1
    assert again.stderr.startswith(f"{output}: exists already")
    assert output.read_text() == "mine"


def test_an_output_that_cannot_be_written(swap: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(APP, [str(swap), "-o", str(tmp_path / "no" / "such" / "file")])
    assert result.exit_code == 1
    assert "cannot be written: No such file or directory" in result.stderr


def test_a_model_that_becomes_a_comment_is_named(tmp_path: Path) -> None:
    file = tmp_path / "models.ini"
    file.write_text("[known-to-the-router]\nc = 1\n[b]\nhf = o/r\n")
    result = CliRunner().invoke(APP, [str(file)])
    assert result.exit_code == 0
    first, second, *_ = result.stderr.splitlines()
    assert first == f"{file}: a presets file of llama.cpp's router; models: 1 llama_cpp"
    assert second == "Only as a comment: known-to-the-router"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"models:\n  a:\n    cmd: x 'y\n", "models.a.cmd: line 3: a quote is not closed"),
        (b"models:\n  \xff: {}\n", "line 2: this is not UTF-8"),
        (b"x" * (4 << 20) + b"x", "is larger than 4194304 bytes"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_converted(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "swap.yaml"
    if content is not None:
        file.write_bytes(content)
    result = CliRunner().invoke(APP, [str(file), "-o", str(tmp_path / "out")])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{file}: {message}")
    assert not (tmp_path / "out").exists()


def test_the_help_shows_an_example() -> None:
    text = " ".join(load_command("migrate").help.split())
    assert "Example: llmux migrate llama-swap.yaml --output llmux.yaml && llmux check -c llmux.yaml" in text
    assert 'extra_args: [-c, "8192"]' in text
