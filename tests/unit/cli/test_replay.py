from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llmux.cli.main import application

TRACE = "timestamp,model,prompt_tokens,output_tokens\n0,a,100,10\n"


def replay(*arguments: str) -> Result:
    return CliRunner().invoke(application, ["replay", *arguments])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.csv"], 1, "none.csv: the trace cannot be read"),
        (["t.csv", "--skip", "10"], 1, "nothing is left of the trace"),
        (["t.csv", "--url", "127.0.0.1"], 2, "form http://HOST:PORT"),
        (["t.csv", "--speed", "0"], 2, "--speed"),
        (["t.csv", "--url", "http://127.0.0.1:1"], 1, "no metrics from llmux"),
    ],
)
def test_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(TRACE)
    result = replay(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
