"""From settings to what is built of them."""

import sys
from pathlib import Path

import pytest

from llmux.config.settings import Settings
from llmux.server.build import build_scheduler, missing_programs


def test_programs_that_are_not_there_are_named_with_their_models(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_text("")
    program.chmod(0o755)
    models = {
        "a": {},
        "b": {},
        "c": {"command": sys.executable},
        "d": {"command": "engine", "env": {"PATH": str(tmp_path)}},
        "e": {"command": "engine"},
    }
    described = {name: {"model_path": "x", **keys} for name, keys in models.items()}
    settings = Settings.model_validate({"models": described, "vllm_command": "/nowhere/vllm"})
    assert missing_programs(settings) == {"/nowhere/vllm": ["a", "b"], "engine": ["e"]}


@pytest.mark.parametrize(("policy", "covers"), [({}, False), ({"request_timeout_seconds": 300.0}, True)])
def test_a_request_timeout_covers_starts_only_if_it_was_set(policy: dict[str, float], covers: bool) -> None:
    settings = Settings.model_validate({"models": {"a": {"model_path": "x"}}, "policy": policy})
    assert build_scheduler(settings)._world.limits.request_timeout_covers_starts is covers
