"""From settings to what is built of them."""

import sys
from pathlib import Path

import pytest

from llmux.config.policy import PolicySettings, PolicyType
from llmux.config.settings import Settings
from llmux.server.build import build_policy, missing_programs
from tests.support.core_scenarios import POLICIES

DOCS = Path(__file__).parents[3] / "docs"


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


@pytest.mark.parametrize("name", list(PolicyType))
def test_the_random_walks_know_every_policy_that_can_be_configured(name: PolicyType) -> None:
    assert type(build_policy(PolicySettings(policy_type=name))) is POLICIES[name]


@pytest.mark.parametrize("document", ["configuration.md", "scheduling.md"])
def test_every_policy_is_described(document: str) -> None:
    rows = [line for line in (DOCS / document).read_text().splitlines() if line.startswith("| `")]
    assert [name for name in PolicyType if not any(row.startswith(f"| `{name}`") for row in rows)] == []
