"""``llmux serve`` accepts the demo's settings, its GPU holds one model, and its traffic is mixed and repeatable."""

import sys
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from llmux.config.checks import problems, unsupported
from llmux.simulation.demo import setup
from llmux.simulation.demo.setup import (
    ASLEEP_MIB,
    CAPACITY_MIB,
    KIND_SHARES,
    MODELS,
    EngineMissing,
    build_setup,
    demo_traffic,
    find_engine,
)
from llmux.simulation.engine.options import parse


def test_the_settings_can_be_served(tmp_path: Path) -> None:
    settings = build_setup(tmp_path).settings
    assert list(settings.models) == [model.name for model in MODELS]
    assert not list(problems(settings))
    assert not unsupported(settings)
    assert len({settings.eviction_of(name) for name in settings.models}) == 3


def test_the_engines_understand_their_arguments(tmp_path: Path) -> None:
    built = build_setup(tmp_path)
    arguments = built.settings.engine_of("qwen").arguments
    options, timings, _ = parse(["serve", "x", *arguments], {})
    assert options.ledger_path == str(built.ledger.path)
    assert options.residue_mib == ASLEEP_MIB
    assert timings.reload_seconds > 0


def test_the_gpu_holds_each_model_beside_sleepers_but_no_two() -> None:
    for model in MODELS:
        assert model.memory_mib + (len(MODELS) - 1) * ASLEEP_MIB <= CAPACITY_MIB
    for one, other in combinations(MODELS, 2):
        assert one.memory_mib + other.memory_mib > CAPACITY_MIB


def test_a_missing_engine_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(setup.shutil, "which", lambda program: None)
    with pytest.raises(EngineMissing, match="install llmux with pip"):
        find_engine()


def test_a_seed_gives_the_same_requests_and_another_one_others() -> None:
    assert list(demo_traffic(1, 5.0)) == list(demo_traffic(1, 5.0))
    assert list(demo_traffic(1, 5.0)) != list(demo_traffic(2, 5.0))


def test_requests_arrive_in_order_and_within_the_time() -> None:
    times = [request.at_seconds for request in demo_traffic(3, 10.0)]
    assert times[0] == 0.0
    assert all(first <= second for first, second in pairwise(times))
    assert times[-1] < 10.0


def test_all_models_and_kinds_occur_and_some_clients_leave() -> None:
    requests = list(demo_traffic(1, 20.0))
    assert {request.model for request in requests} == {model.name for model in MODELS}
    assert {request.kind for request in requests} == set(KIND_SHARES)
    leaving = [request for request in requests if request.patience_seconds is not None]
    assert 0 < len(leaving) < len(requests) / 3


def test_no_two_prompts_are_the_same() -> None:
    requests = list(demo_traffic(1, 20.0))
    assert len({request.prompt for request in requests}) == len(requests)
