"""``llmux serve`` accepts the settings of each demo, and the simulated engines understand their arguments."""

import sys
from pathlib import Path

import pytest

from llmux.config.checks import problems
from llmux.gpus.memory import StartNeed
from llmux.server.build import build_scheduler
from llmux.simulation.demo import setup
from llmux.simulation.demo.scenarios import CAPACITY_MIB, CHATS, FLEET, MIXED, Scenario
from llmux.simulation.demo.setup import EngineMissing, build_setup, find_engine
from llmux.simulation.engine import comfyui, options, plain
from llmux.simulation.gpus import find_virtual_gpu

SCENARIOS = pytest.mark.parametrize("scenario", [CHATS, MIXED, FLEET], ids=["chats", "mixed", "fleet"])


@SCENARIOS
def test_the_settings_can_be_served(tmp_path: Path, scenario: Scenario) -> None:
    settings = build_setup(scenario, tmp_path).settings
    assert list(settings.models) == [model.name for model in scenario.models]
    assert not list(problems(settings))
    for model in scenario.models:
        assert str(settings.eviction_of(model.name)) == model.eviction


@SCENARIOS
def test_the_gpu_of_every_engine_is_found(tmp_path: Path, scenario: Scenario) -> None:
    built = build_setup(scenario, tmp_path)
    for model in scenario.models:
        engine = built.settings.engine_of(model.name)
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(scenario.gpus)))}
        found = find_virtual_gpu(engine.arguments, engine.options.environment | visible)
        assert found is not None
        reader, need = found
        assert [gpu.total_mib for gpu in reader.read_memory()] == [CAPACITY_MIB] * scenario.gpus
        assert need == StartNeed(mib=model.memory_mib)


def test_on_several_gpus_models_are_placed_by_what_their_engines_take(tmp_path: Path) -> None:
    settings = build_setup(FLEET, tmp_path).settings
    scheduler = build_scheduler(settings)
    assert [total for total, _ in scheduler.gpu_memory().values()] == [CAPACITY_MIB] * FLEET.gpus
    for model in FLEET.models:
        [first, *_] = scheduler.model(model.name).spec.placements
        assert list(first.awake.values()) == [model.memory_mib] * model.gpus


def test_the_simulated_vllm_understands_its_arguments(tmp_path: Path) -> None:
    built = build_setup(CHATS, tmp_path)
    found, timings, _ = options.parse(["serve", "x", *built.settings.engine_of("qwen").arguments], {})
    assert found.ledger_path == str(built.ledgers[0].path)
    assert found.residue_mib == CHATS.models[1].asleep_mib
    assert timings.reload_seconds > 0


def test_the_simulated_embedding_server_understands_its_command(tmp_path: Path) -> None:
    built = build_setup(MIXED, tmp_path)
    program, flag, kind, *words = built.settings.engine_of("embed").command_line(8000)
    assert (program, flag, kind) == (find_engine(), "--sim-kind", "embeddings")
    found, _, _ = plain.parse(words, {})
    assert (found.name, found.port, found.ledger_path) == ("embed", 8000, str(built.ledgers[0].path))


def test_the_simulated_comfyui_is_started_as_a_real_one_is(tmp_path: Path) -> None:
    built = build_setup(MIXED, tmp_path)
    python, script, *words = built.settings.engine_of("images").command_line(8000)
    assert (python, Path(script).is_file()) == (sys.executable, True)
    found, _, _ = comfyui.parse(words, {})
    assert (found.port, found.output_directory) == (8000, str(built.pictures))
    assert built.pictures.is_dir()


def test_keys_of_the_configuration_can_be_changed(tmp_path: Path) -> None:
    assert build_setup(CHATS, tmp_path, changes={"drain_timeout_seconds": 7.0}).settings.drain_timeout_seconds == 7.0


def test_a_missing_engine_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(setup.shutil, "which", lambda program: None)
    with pytest.raises(EngineMissing, match="install llmux with pip"):
        find_engine()
