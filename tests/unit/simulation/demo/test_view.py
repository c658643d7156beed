"""The displays and the summary, at the sizes of terminals."""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from llmux.core.eviction import STOP
from llmux.core.model import Transition
from llmux.core.states import Auto, Cold, Serving, Waking
from llmux.runtime.operations import ModelStatus, Status
from llmux.simulation.client import LoadGenerator
from llmux.simulation.demo.scenarios import CHATS, FLEET, MIXED, Scenario
from llmux.simulation.demo.state import DemoState, Monitor, Stage
from llmux.simulation.demo.summary import render_summary, summarise
from llmux.simulation.demo.view import PlainDisplay, axis_line, bar, duration, joined, line, render, strip_line
from llmux.simulation.ledger import Ledger
from llmux.simulation.residency import Phase, Timeline
from llmux.simulation.traffic import Ending, RequestKind, RequestOutcome, TrafficRequest


class BusyOperator:
    """The first model serves after many switches; the others wait."""

    def __init__(self, scenario: Scenario) -> None:
        self.time = 0.0
        self.names = [model.name for model in scenario.models]
        self.gpus = scenario.gpus

    def now(self) -> float:
        return self.time

    def status(self) -> Status:
        return Status(None, None, Auto(), tuple(map(self._status, self.names)))

    def history(self, name: str) -> list[Transition]:
        if name != self.names[0]:
            return []
        cold, waking, serving = Cold(), Waking(0.0, None), Serving(1.0)
        return [Transition(0.0, "x", cold, waking), *(Transition(1.0, "x", waking, serving) for _ in range(20))]

    def _status(self, name: str) -> ModelStatus:
        serves = name == self.names[0]
        state = Serving(1.0) if serves else Cold()
        places = {"0": 1, "1": 1} if serves and self.gpus > 1 else {}
        return ModelStatus(name, 123 if serves else 0, 0 if serves else 45, state, STOP, None, 61.5, gpu_mib=places)


def ended(model: str, ending: Ending, wait: float | None = None, problem: str = "") -> RequestOutcome:
    request = TrafficRequest(0.0, model, 1, 3, RequestKind.CHAT, "Hi")
    return RequestOutcome(request, 0.0, admitted_at=wait, ending=ending, problem=problem)


@pytest.fixture(params=[CHATS, MIXED, FLEET], ids=["chats", "mixed", "fleet"])
def state(tmp_path: Path, request: pytest.FixtureRequest) -> DemoState:
    scenario: Scenario = request.param
    operator = BusyOperator(scenario)
    monitor = Monitor(operator)
    monitor.sample()
    operator.time = 12.0
    monitor.sample()
    traffic = LoadGenerator([], clients_max=1)
    traffic.outcomes = [ended(operator.names[0], Ending.ANSWERED, 12.3)] * 1234
    traffic.sent = 1357
    ledgers = [Ledger(tmp_path / f"gpu-{number}.json").create(24 << 10) for number in range(scenario.gpus)]
    for model in scenario.models:
        ledgers[0].allocate(os.getpid(), model.memory_mib, model.name_on_gpu)
    return DemoState(scenario, "http://127.0.0.1:12345", monitor, ledgers, 20.0, traffic)


def lines_of(renderable: object, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("with_traffic", [True, False])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (120, 40), (200, 60)])
def test_the_view_fits_and_nothing_is_cut_off(state: DemoState, width: int, height: int, with_traffic: bool) -> None:
    if not with_traffic:
        state.traffic = None
    lines = lines_of(render(state, width, height), width, height)
    assert len(lines) <= height
    text = "\n".join(lines)
    assert "…" not in text
    assert "▮ 123" in text
    assert "▯ 45" in text
    assert "61" in text or "62 s" in text
    assert "in all" in text
    assert ("1234 answered" in text) is with_traffic
    assert ("'content-type: application/json'" in text) is not with_traffic
    assert state.scenario.title in text
    assert text.count(f"nobody → {state.scenario.models[0].name}") >= 2


def test_the_view_shows_each_gpu_and_who_is_where(state: DemoState) -> None:
    lines = [text.rstrip() for text in lines_of(render(state, 120, 40), 120, 40)]
    memory = [text.split()[0:2] for text in lines if text.endswith("GiB")]
    if state.scenario.gpus == 1:
        assert [words[0] for words in memory] == ["GPU"]
    else:
        assert memory == [["GPU", "0"], ["GPU", "1"]]
        [first] = [text for text in lines if text.startswith(state.scenario.models[0].name) and "▮ 123" in text]
        assert first.endswith("0+1")


def test_a_tiny_terminal_is_no_error(state: DemoState) -> None:
    assert lines_of(render(state, 20, 5), 20, 5)


def test_the_stage_follows_the_run(state: DemoState) -> None:
    assert state.stage is Stage.TRAFFIC
    assert state.traffic is not None
    state.traffic.all_sent = True
    assert state.stage is Stage.LAST_ANSWERS
    state.is_stopping = True
    assert state.stage is Stage.STOPPING


def test_the_plain_line_shows_which_model_serves_and_which_requests_wait(state: DemoState) -> None:
    text = line(state)
    first, second, *_ = (model.name for model in state.scenario.models)
    assert text.startswith(f"{first} serving 123 | {second} not started, 45 waiting (62 s)")
    assert text.endswith("123 open, 1234 answered, 0 left, 0 lost")


def test_a_plain_display_writes_a_line_a_second(state: DemoState) -> None:
    output = io.StringIO()
    display = PlainDisplay(Console(file=output))
    display.announce(state)
    display.show(state)
    display.show(state)
    lines = output.getvalue().splitlines()
    assert lines[0] == "llmux demo: listening on http://127.0.0.1:12345"
    assert len(lines) == 2
    assert lines[1].startswith(f" 12.0 s  {state.scenario.models[0].name} serving")


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_summary_fits_and_names_problems(state: DemoState, width: int) -> None:
    names = [model.name for model in state.scenario.models]
    outcomes = [ended(names[1], Ending.ANSWERED, 1.0), ended(names[1], Ending.LOST, None, "503: gone")]
    monitor = state.monitor
    shares = monitor.timeline.shares(monitor.elapsed_seconds)
    summary = summarise(
        names, outcomes, monitor.switches, shares, [ledger.snapshot() for ledger in state.ledgers], 12.0
    )
    lines = lines_of(render_summary(summary, state, width), width, 40)
    assert lines[0] == "llmux demo: 1 lost of 2 requests"
    assert lines[-1] == f"! {names[1]}, plain chat: 503: gone"
    assert all(len(text.rstrip()) <= width for text in lines)
    for model in state.scenario.models:
        assert any(text.startswith(model.name) and model.eviction in text for text in lines)
    assert any(text.startswith("waits      p50 1.0 s · p99 1.0 s") for text in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0, "0.00 s"), (0.994, "0.99 s"), (0.996, "1.0 s"), (12.34, "12.3 s"), (59.96, "60 s")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_bar_is_cut_off_but_its_number_is_not() -> None:
    assert bar(0, 4, "x", "").plain == "–"
    assert bar(3, 4, "x", "").plain == "xxx 3"
    assert bar(30, 4, "x", "").plain == "xxxx 30"


@pytest.mark.parametrize(("start", "end"), [(0.0, 25.0), (3.3, 33.3), (0.0, 0.7), (0.0, 3600.0)])
def test_an_axis_fits_and_its_marks_are_in_the_right_cells(start: float, end: float) -> None:
    cells = 60
    text = axis_line(start, end, cells).plain
    assert len(text) <= cells
    marks = text.split(" s")[:-1]
    assert marks
    position = 0
    for mark in marks:
        position += len(mark) - len(mark.lstrip())
        at = start + position / cells * (end - start)
        assert at == pytest.approx(float(mark), abs=(end - start) / cells)
        position += len(mark.lstrip()) + len(" s")


def test_a_strip_has_a_sign_per_cell_and_is_blank_after_now() -> None:
    timeline = Timeline({"llama": [(0.0, Phase.IDLE), (1.0, Phase.SERVING)]})
    assert strip_line(timeline, "llama", "red", 0.0, 4.0, 4, now=2.0).plain == "▂█"
    assert strip_line(timeline, "llama", "red", 0.0, 4.0, 4, now=9.0).plain == "▂███"


def test_parts_are_joined_by_dots() -> None:
    assert joined(["a", ("b", "red"), "c"]).plain == "a · b · c"
