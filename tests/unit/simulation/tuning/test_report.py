import io
import json

import yaml
from rich.console import Console

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.tuning.changes import GpuMemory, LeaveAfter, LeaveBy
from llmux.simulation.tuning.report import document, fragment, render
from llmux.simulation.tuning.search import Tuning, tune
from llmux.simulation.virtual.scenario import build_scenario

GIB = 1024
TURNS = [TrafficRequest(5.0 * number, "ab"[number % 2], 80, 20) for number in range(80)]


def settings() -> Settings:
    sized = {"gpu_memory": "20GiB", "eviction": "offload+keep_running"}
    own_arguments = {"extra_args": ["--gpu-memory-utilization", "0.8"]}
    models = {"a": {"model_path": "a", **sized}, "b": {"model_path": "b", **sized, **own_arguments}}
    return loads(json.dumps({"models": models, "gpus": [{"memory": "24GiB"}]})).settings


def tuned(requests: list[TrafficRequest], **least_mib: int) -> Tuning:
    return tune(settings(), build_scenario, requests, PolicyType.FIFO, least_mib, 200, lambda runs: None)


def shown(tuning: Tuning) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(render(tuning, settings()), highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_fragment_can_be_pasted_and_says_what_else_is_to_be_done() -> None:
    changes = (GpuMemory("b", 12 * GIB), LeaveBy("a", Eviction.parse("offload+keep_running")), LeaveAfter("a", None))
    text = fragment(changes, settings(), 40 * GIB)
    assert yaml.safe_load(text) == {
        "models": {"b": {"gpu_memory": "12GiB"}, "a": {"eviction": "offload+keep_running", "idle_seconds": None}}
    }
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# b: its own arguments must keep it within 12GiB; llmux does not set them.",
        "# a: while it is off the GPU, its weights take host memory: all sleepers together at most 40960 MiB.",
    ]
    assert "its weights take host memory.\n" in fragment(changes, settings(), 0), "where it is not known how large"


def test_both_halves_are_shown_with_what_each_change_adds() -> None:
    tuning = tuned(TURNS, a=8 * GIB, b=8 * GIB)
    text = shown(tuning)
    assert text.index("the first half, by which") < text.index("the second half, which judges") < text.index("To paste")
    rows = [line.split() for line in text.splitlines() if line.startswith("  all together")]
    saved = f"−{tuning.before.chosen_on.switches - 2}"
    assert [row[4] for row in rows] == [saved, saved], "switches"
    assert text.count("a: gpu_memory 12GiB") == 2


def test_the_document_has_the_same_figures() -> None:
    found = document(tuned(TURNS, a=8 * GIB, b=8 * GIB))
    assert found["holds"] and found["complete"]
    assert found["proposal"] == {"models": {name: {"gpu_memory": "12GiB"} for name in "ab"}}
    for half in ("first_half", "second_half"):
        assert found[half]["together"]["switches"] == 2 < found[half]["before"]["switches"]
        assert [one["models"] for one in found[half]["alone"]] == [{name: {"gpu_memory": "12GiB"}} for name in "ab"]


def test_nothing_is_proposed_that_saves_on_the_first_half_only() -> None:
    tuning = tuned(
        [*TURNS[:40], *(TrafficRequest(200.0 + 5 * number, "a", 80, 20) for number in range(40))],
        a=8 * GIB,
        b=8 * GIB,
    )
    assert "nothing is proposed" in shown(tuning) and "models:" not in shown(tuning)
    assert document(tuning)["proposal"] is None


def test_where_no_change_saves_anything_it_is_said() -> None:
    alone = [TrafficRequest(5.0 * number, "a", 80, 20) for number in range(80)]
    assert "No change would have saved anything" in shown(tuned(alone))
