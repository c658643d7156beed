"""The exit codes of ``llmux demo``, and where it writes what."""

import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer

from llmux.cli.demo import _conclude
from llmux.core.eviction import STOP
from llmux.core.states import Auto, Cold
from llmux.runtime.operations import ModelStatus, Status
from llmux.simulation.demo.scenarios import CHATS
from llmux.simulation.demo.state import DemoState, Monitor
from llmux.simulation.demo.summary import Summary, summarise
from llmux.simulation.ledger import Ledger
from llmux.simulation.residency import Shares
from llmux.simulation.traffic import Ending, RequestKind, RequestOutcome, TrafficRequest


def _not_started(name: str) -> ModelStatus:
    return ModelStatus(name, 0, 0, Cold(), STOP, None, 0.0)


class IdleOperator:
    """A server whose engines have not been started."""

    def now(self) -> float:
        return 0.0

    def status(self) -> Status:
        return Status(None, None, Auto(), tuple(_not_started(model.name) for model in CHATS.models))

    def history(self, name: str) -> list[Any]:
        return []


@dataclass
class EndedRun:
    """The attributes of a ``Demo`` after its run."""

    summary: Summary | None
    state: DemoState | None
    interrupted_by: signal.Signals | None = field(default=None)


def ended(directory: Path, ending: Ending, interrupted_by: signal.Signals | None = None) -> Any:
    ledger = Ledger(directory / "gpu.json").create(1000)
    monitor = Monitor(IdleOperator())
    monitor.sample()
    request = TrafficRequest(0.0, "llama", 1, 3, RequestKind.CHAT, "Hi")
    outcome = RequestOutcome(request, 0.0, ending=ending)
    summary = summarise(["llama"], [outcome], [], Shares(0.0, 0.0, 0.0, 0.0), [ledger.snapshot()], 1.0)
    return EndedRun(summary, DemoState(CHATS, "http://x", monitor, [ledger], 1.0), interrupted_by)


def exit_code(run: Any, *, serve: bool = False, as_json: bool = False) -> int:
    try:
        _conclude(run, serve, as_json)
    except typer.Exit as end:
        return end.exit_code
    return 0


@pytest.mark.parametrize(
    ("ending", "interrupted_by", "serve", "code"),
    [
        (Ending.ANSWERED, None, False, 0),
        (Ending.LEFT, None, False, 0),
        (Ending.LOST, None, False, 1),
        (Ending.WRONG, None, False, 1),
        (Ending.CUT_SHORT, signal.SIGINT, False, 130),
        (Ending.CUT_SHORT, signal.SIGTERM, False, 143),
        (Ending.LOST, signal.SIGINT, False, 1),
        (Ending.ANSWERED, signal.SIGINT, True, 0),
    ],
)
def test_exit_codes(
    tmp_path: Path, ending: Ending, interrupted_by: signal.Signals | None, serve: bool, code: int
) -> None:
    assert exit_code(ended(tmp_path, ending, interrupted_by), serve=serve) == code


def test_an_interruption_before_anything_was_served() -> None:
    assert exit_code(EndedRun(None, None)) == 130


def test_json_is_all_of_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(ended(tmp_path, Ending.LOST), as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["requests"]["lost"] == 1


def test_the_summary_begins_with_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code(ended(tmp_path, Ending.ANSWERED))
    assert capsys.readouterr().out.startswith("llmux demo: no request lost, 1 requests")


def test_serving_shows_no_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code(ended(tmp_path, Ending.ANSWERED, signal.SIGINT), serve=True)
    assert capsys.readouterr().out == ""
