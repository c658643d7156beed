import json

from llmux.simulation.report.document import document
from llmux.simulation.report.fate import Fate
from llmux.simulation.report.figures import Distribution, LowerBound, RunFigures, figures_of
from llmux.simulation.virtual.timeline import Shares

FIGURES = figures_of([Fate("a", 0.0, 1.0, 2.0, 3.0, True)], 4, Shares(0.1, 0.2, 0.3, 0.4), 1.0)
BOUND = LowerBound(Distribution.of([0.5]), {5: 1.0}, [0.5])


def test_the_shape_that_others_read() -> None:
    found = json.loads(json.dumps(document(["x.csv"], 1, [RunFigures("fifo", FIGURES, {"a": FIGURES})], BOUND, seed=3)))
    assert (found["trace"], found["requests"], found["seed"]) == ("x.csv", 1, 3)
    fifo = found["policies"]["fifo"]
    assert fifo["ttft"] == {"mean": 2.0, "p50": 2.0, "p90": 2.0, "p99": 2.0, "max": 2.0}
    assert fifo["latency"]["mean"] == 3.0
    assert fifo["wait"]["mean"] == 1.0
    assert (fifo["switches"], fifo["unserved"], fifo["starvation"]) == (4, 0, 1.0)
    assert fifo["share"] == {"serving": 0.3, "switching": 0.1, "draining": 0.2, "idle": 0.4}
    assert fifo["within"] == {"5": 1.0, "10": 1.0, "30": 1.0}
    assert fifo["models"]["a"]["ttft"] == fifo["ttft"]
    assert found["lower_bound"]["ttft"]["mean"] == 0.5


def test_without_a_bound_there_is_none() -> None:
    assert "lower_bound" not in document([], 1, [], None)
