import pytest

from llmux.cli.steps import Steps


def test_nothing_is_shown_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps() as steps:
        done = steps.begin("work", 3)
        done(2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_on_a_terminal_it_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Steps() as steps:
        steps.begin("lower bound", None)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "lower bound" in captured.err
