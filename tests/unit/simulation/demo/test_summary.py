"""Outcomes add up to the demo's figures."""

import json

import pytest

from llmux.simulation.demo.summary import Summary, summarise
from llmux.simulation.ledger import LedgerSnapshot, Refusal
from llmux.simulation.residency import Shares, Switch
from llmux.simulation.traffic import Ending, RequestKind, RequestOutcome, TrafficRequest

GPU = LedgerSnapshot(1000, 900)


def ended(ending: Ending, model: str = "a", wait: float | None = None, problem: str = "") -> RequestOutcome:
    request = TrafficRequest(0.0, model, 1, 4, RequestKind.CHAT_STREAM, "Hi")
    return RequestOutcome(request, 0.0, admitted_at=wait, ending=ending, problem=problem)


def summary_of(*outcomes: RequestOutcome, gpu: LedgerSnapshot = GPU) -> Summary:
    switches = [Switch("", "a", 1.0, True, 0.0, 0.0, 1.0), Switch("a", "b", 4.0, False, 1.0, 0.5, 0.5)]
    return summarise(["a", "b"], outcomes, switches, Shares(0.3, 0.2, 0.4, 0.1), [gpu], 10.0)


def test_the_figures() -> None:
    data = summary_of(
        ended(Ending.ANSWERED, wait=0.5),
        ended(Ending.ANSWERED, "b", wait=2.0),
        ended(Ending.LEFT),
        ended(Ending.CUT_SHORT),
    ).as_data()
    assert data["ok"] is True
    assert data["requests"] == {
        "sent": 4,
        "streamed": 4,
        "answered": 2,
        "left": 1,
        "cut_short": 1,
        "lost": 0,
        "wrong": 0,
    }
    assert data["wait_seconds"] == {"p50": 0.5, "p99": 2.0, "max": 2.0}
    assert data["switches"] == {"count": 2, "cold_starts": 1, "p50_seconds": 1.0, "longest_seconds": 2.0}
    assert data["time_share"] == {"serving": 0.4, "switching": 0.5, "idle": 0.1, "draining": 0.2}
    assert data["gpus"] == [{"capacity_mib": 1000, "peak_mib": 900, "over_commitments": 0}]
    assert data["models"]["b"] == {
        "requests": 1,
        "answered": 1,
        "brought_in": 1,
        "wait_seconds": {"p50": 2.0, "p99": 2.0, "max": 2.0},
    }
    assert json.loads(json.dumps(data)) == data


@pytest.mark.parametrize("ending", [Ending.LOST, Ending.WRONG])
def test_a_lost_or_wrong_answer_is_not_good_and_is_named(ending: Ending) -> None:
    summary = summary_of(ended(Ending.ANSWERED), ended(ending, problem="503: gone"))
    assert not summary.is_good
    assert summary.problems == ("a, streamed chat: 503: gone",)


def test_an_over_commitment_is_not_good_and_is_named() -> None:
    refusal = Refusal(1, "b", 900, 100, 0.0)
    summary = summary_of(ended(Ending.ANSWERED), gpu=LedgerSnapshot(1000, 900, (refusal,)))
    assert not summary.is_good
    assert summary.problems == ("b wanted 900 MiB of the GPU when 100 were free",)


def test_no_requests_and_no_time_are_no_error() -> None:
    summary = summarise(["a"], [], [], Shares(0.0, 0.0, 0.0, 0.0), [GPU], 0.0)
    assert summary.is_good
    assert summary.as_data()["wait_seconds"] == {"p50": None, "p99": None, "max": None}
