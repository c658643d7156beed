"""What a person sees, at the sizes that terminals have."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from llmux.core.eviction import STOP
from llmux.core.model import Transition
from llmux.core.states import Auto, Cold, Serving, Waking
from llmux.runtime.operations import ModelStatus, Status
from llmux.simulation.demo.board import Board, Stage
from llmux.simulation.demo.display import PlainDisplay, line
from llmux.simulation.demo.observation import Observation
from llmux.simulation.demo.records import Call, Ending, Kind, Record
from llmux.simulation.demo.report import render_summary
from llmux.simulation.demo.scenario import MODELS
from llmux.simulation.demo.summary import summarise
from llmux.simulation.demo.traffic import Traffic
from llmux.simulation.demo.view import render
from llmux.simulation.ledger import Ledger


class BusyOperator:
    """``llama`` serves after many switches; the others wait."""

    time = 0.0

    def now(self) -> float:
        return self.time

    def status(self) -> Status:
        return Status("", None, Auto(), tuple(self._status(model.name) for model in MODELS))

    def history(self, name: str) -> list[Transition]:
        if name != "llama":
            return []
        cold, waking, serving = Cold(), Waking(0.0, None), Serving(1.0)
        return [Transition(0.0, "x", cold, waking), *(Transition(1.0, "x", waking, serving) for _ in range(20))]

    def _status(self, name: str) -> ModelStatus:
        serves = name == "llama"
        return ModelStatus(name, 123 if serves else 0, 0 if serves else 45, "", STOP, serves, None, None, 61.5)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    operator = BusyOperator()
    observation = Observation(operator)
    observation.look()
    operator.time = 12.0
    observation.look()
    traffic = Traffic([])
    traffic.records = [Record(Call(0.0, "llama", Kind.CHAT, "Hi", 3), Ending.ANSWERED, 12.3)] * 1234
    traffic.sent = 1357
    ledger = Ledger(tmp_path / "gpu.json").create(24 << 10)
    return Board("http://127.0.0.1:12345", observation, ledger, 20.0, traffic)


def lines_of(renderable: object, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("with_traffic", [True, False])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
def test_the_view_fits_and_nothing_is_cut_off(board: Board, width: int, height: int, with_traffic: bool) -> None:
    if not with_traffic:
        board.traffic = None
    lines = lines_of(render(board, width, height), width, height)
    assert len(lines) <= height
    text = "\n".join(lines)
    assert "…" not in text
    assert "▮ 123" in text
    assert "▯ 45" in text
    assert "61" in text or "62 s" in text
    assert "in all" in text
    assert ("1234 answered" in text) is with_traffic
    assert ("'content-type: application/json'" in text) is not with_traffic
    assert text.count("nobody → llama") >= 2


def test_a_tiny_terminal_does_no_harm(board: Board) -> None:
    assert lines_of(render(board, 20, 5), 20, 5)


def test_the_stage_follows_the_run(board: Board) -> None:
    assert board.stage is Stage.TRAFFIC
    assert board.traffic is not None
    board.traffic.all_sent = True
    assert board.stage is Stage.LAST_ANSWERS
    board.is_stopping = True
    assert board.stage is Stage.STOPPING


def test_the_plain_line_says_who_serves_and_who_waits(board: Board) -> None:
    text = line(board)
    assert text.startswith("llama serving 123 | qwen not started, 45 waiting (62 s)")
    assert text.endswith("123 open, 1234 answered, 0 left, 0 lost")


def test_a_plain_display_writes_a_line_a_second(board: Board) -> None:
    output = io.StringIO()
    display = PlainDisplay(Console(file=output))
    display.announce(board)
    display.show(board)
    display.show(board)
    lines = output.getvalue().splitlines()
    assert lines[0] == "llmux demo: listening on http://127.0.0.1:12345"
    assert len(lines) == 2
    assert lines[1].startswith(" 12.0 s  llama serving")


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_fits_and_names_problems(board: Board, width: int) -> None:
    call = Call(0.0, "qwen", Kind.CHAT, "Hi", 3)
    records = [Record(call, Ending.ANSWERED, 1.0), Record(call, Ending.LOST, None, "503: gone")]
    names = [model.name for model in MODELS]
    observation = board.observation
    summary = summarise(names, records, observation.switches, observation.shares, board.ledger.snapshot(), 12.0)
    lines = lines_of(render_summary(summary, board, width), width, 40)
    assert lines[0] == "llmux demo: 1 lost of 2 requests"
    assert lines[-1] == "! qwen, plain chat: 503: gone"
    assert all(len(text.rstrip()) <= width for text in lines)
    assert any(text.startswith("waits      p50 1.0 s · p99 1.0 s") for text in lines)
