import io
import json
from collections import Counter

import pytest
from rich.console import Console

from llmux.simulation.figures import LowerBound, run_figures
from llmux.simulation.residency import Shares
from llmux.simulation.tables import document, render, seconds_text
from llmux.simulation.traffic import Ending, RequestOutcome, TrafficRequest

SERVED = RequestOutcome(TrafficRequest(0.0, "a", 1, 1), 0.0, 1.0, 2.0, 3.0, Ending.ANSWERED)
LOST = RequestOutcome(TrafficRequest(0.0, "b", 1, 1), 0.0, ended_at=9.0)
SHARE = Shares(0.1, 0.2, 0.3, 0.4)
BOUND = LowerBound(0.5)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_seconds_have_three_significant_digits(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


def test_each_policy_each_model_and_the_bound_have_a_row() -> None:
    run = run_figures("fifo", [SERVED, LOST], Counter(a=1, b=1), lambda model: SHARE)
    file = io.StringIO()
    Console(file=file, width=120).print(render([run], BOUND))
    lines = [line.split() for line in file.getvalue().splitlines()]
    assert ["fifo", "2", "1", "2.00", "2.00", "2.00", "2.00", "2.00", "50%", "50%", "50%"] in lines
    assert ["b", "1", "1", "–", "–", "–", "–", "–", "0%", "0%", "0%"] in lines
    assert ["lower", "bound", "0.500"] in lines
    assert ["fifo", "50.0%", "50.0%", "0.000", "0.000"] in lines
    assert ["fifo", *["3.00"] * 5, "2", "9.00", "30.0%", "10.0%", "20.0%", "40.0%"] in lines


def test_the_documented_shape_of_the_json_object() -> None:
    run = run_figures("fifo", [SERVED], Counter(a=4), lambda model: SHARE)
    found = json.loads(json.dumps(document(["x.csv"], 1, [run], BOUND, seed=3)))
    assert (found["trace"], found["requests"], found["seed"]) == ("x.csv", 1, 3)
    fifo = found["policies"]["fifo"]
    assert fifo["ttft"] == {"mean": 2.0, "p50": 2.0, "p90": 2.0, "p99": 2.0, "max": 2.0}
    assert fifo["latency"]["mean"] == 3.0
    assert fifo["wait"]["mean"] == 1.0
    assert (fifo["switches"], fifo["unserved"], fifo["starvation"]) == (4, 0, 1.0)
    assert fifo["share"] == {"serving": 0.3, "switching": 0.1, "draining": 0.2, "idle": 0.4}
    assert fifo["on_time"] == {"tokens": 1.0, "requests": 1.0}
    assert fifo["stall"]["max"] == 0.0
    assert fifo["within"] == {"5": 1.0, "10": 1.0, "30": 1.0}
    assert fifo["models"]["a"]["ttft"] == fifo["ttft"]
    assert found["lower_bound"]["ttft"]["mean"] == 0.5


def test_without_a_lower_bound_there_is_no_entry() -> None:
    assert "lower_bound" not in document([], 1, [], None)


def test_what_was_refused_is_told_beside_what_was_lost() -> None:
    refused = RequestOutcome(TrafficRequest(0.0, "b", 1, 1), 0.0, ended_at=0.0, refused=True)
    run = run_figures("adaptive", [SERVED, LOST, refused], Counter(), lambda model: SHARE)
    assert (run.total.unserved, run.total.refused) == (2, 1)
    assert document(["trace.csv"], 3, [run], BOUND)["policies"]["adaptive"]["refused"] == 1
    output = io.StringIO()
    Console(file=output, width=200).print(render([run], BOUND))
    assert "2 (1 refused)" in output.getvalue()
