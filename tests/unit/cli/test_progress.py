"""Progress bars are shown on a terminal only."""

import pytest

from llmux.cli.progress import ProgressBars


def test_nothing_is_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBars() as progress:
        done = progress.begin("work", 3)
        done(2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_on_a_terminal_bars_go_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ProgressBars() as progress:
        progress.begin("lower bound", None)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "lower bound" in captured.err
