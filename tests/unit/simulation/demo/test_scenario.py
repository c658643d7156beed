"""The demo's settings are such as ``llmux serve`` takes, and its GPU holds one model."""

import sys
from itertools import combinations
from pathlib import Path

import pytest

from llmux.config.checks import problems, unsupported
from llmux.simulation.demo import scenario
from llmux.simulation.demo.scenario import ASLEEP_MIB, CAPACITY_MIB, MODELS, EngineMissing, build_scenario, find_engine
from llmux.simulation.engine.options import parse


def test_the_settings_can_be_served(tmp_path: Path) -> None:
    settings = build_scenario(tmp_path).settings
    assert list(settings.models) == [model.name for model in MODELS]
    assert not list(problems(settings))
    assert not unsupported(settings)
    assert len({settings.eviction_of(name) for name in settings.models}) == 3


def test_the_engines_understand_their_arguments(tmp_path: Path) -> None:
    built = build_scenario(tmp_path)
    arguments = built.settings.models["qwen"].engine_arguments
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
    monkeypatch.setattr(scenario.shutil, "which", lambda program: None)
    with pytest.raises(EngineMissing, match="install llmux with pip"):
        find_engine()
