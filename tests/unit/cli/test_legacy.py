import pytest

from llmux.cli.legacy import translate


@pytest.mark.parametrize(
    ("given", "translated"),
    [
        ([], ["serve"]),
        (["--config", "f.json"], ["serve", "--config", "f.json"]),
        (["-c", "f", "-p", "9", "-v"], ["serve", "-c", "f", "-p", "9", "-v"]),
        (["-h"], ["--help"]),
        (["--version"], ["--version"]),
        (["check", "-c", "f"], ["check", "-c", "f"]),
        (["serve", "-h"], ["serve", "--help"]),
        (
            ["-c", "f", "--validate", "m", "--policies", "offload+stop"],
            ["validate", "m", "-c", "f", "--policies", "offload+stop"],
        ),
        (["--validate=m", "-c", "f"], ["validate", "m", "-c", "f"]),
        (["--checkpoint", "m", "--no-warmup"], ["checkpoint", "m", "--no-warmup"]),
        (["--restore-detached", "m"], ["restore", "m"]),
    ],
)
def test_the_command_line_of_077(given: list[str], translated: list[str]) -> None:
    assert translate(given) == translated
