"""The JSON schema and the table in the documentation are current; the schema agrees with the loader."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from llmux.config.load import load, loads
from llmux.config.schema import MARK, json_schema, render, render_reference
from llmux.config.settings import Settings
from llmux.errors import ConfigError

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
OLD_FILES = sorted((ROOT / "tests" / "fixtures" / "config_077").glob("*.json"))
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def properties() -> Iterator[tuple[str, dict[str, Any]]]:
    schema = json_schema()
    for section in [schema, *schema["$defs"].values()]:
        for key, value in section.get("properties", {}).items():
            yield f"{section['title']}.{key}", value


def test_the_schema_is_valid_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_the_committed_schema_is_current() -> None:
    committed = (ROOT / "config.schema.json").read_text(encoding="utf-8")
    assert committed == render(), "run: llmux schema > config.schema.json"


def test_the_documented_options_are_current() -> None:
    document = ROOT / "docs" / "configuration.md"
    assert document.read_text().partition(MARK)[2] == render_reference(), "run 'make schema'"


def test_every_option_is_documented() -> None:
    table = render_reference()
    for key in Settings.model_fields:
        assert f"| `{key}` |" in table


def test_every_key_is_described() -> None:
    described = dict(properties())
    assert len(described) > 40
    assert [key for key, value in described.items() if not value.get("description")] == []


def test_there_are_examples() -> None:
    assert {"two-models", "one-gpu-six-models", "simulated"} <= {file.stem for file in EXAMPLES}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_load_and_validate(file: Path) -> None:
    assert load(file, {}).warnings == ()
    VALIDATOR.validate(yaml.safe_load(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", OLD_FILES, ids=lambda file: file.stem)
def test_old_files_validate(file: Path) -> None:
    VALIDATOR.validate(json.loads(file.read_text(encoding="utf-8")))


def test_all_old_keys_are_in_the_schema() -> None:
    policy = {"request_timeout_secs": 1, "min_active_secs": 1, "coalesce_window_ms": 1, "max_wait_secs": 1}
    policy |= {"tick_interval_ms": 1, "min_quantum_ms": 1, "sleep_level": 1}
    models = {"a": {"model_path": "x", "sleep_level": 5}}
    data = {"models": models, "policy": policy, "startup_timeout_secs": 1, "max_sleeping": 1}
    VALIDATOR.validate(data)
    loads(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1},
        {"models": {}},
        {"models": {"a": {"model_path": "x", "port": 0}}},
        {"models": {"a": {"model_path": "x", "eviction": 6}}},
        {"models": {"a": {"model_path": "x", "eviction": "stop"}}},
        {"models": {"a": {"model_path": "x", "eviction": {"weights": "retain"}}}},
        {"models": {"a": {"model_path": "x", "extra_args": [True]}}},
        {"models": {"a": {"model_path": "x", "drain": "later"}}},
        {"policy": {"policy_type": "lru"}},
        {"policy": {"max_wait_seconds": -1}},
        {"port": 65536},
        {"warmup": "yes"},
        {"max_body_bytes": 0},
    ],
    ids=str,
)
def test_schema_and_loader_refuse_the_same(change: dict[str, Any]) -> None:
    data = {"models": {"a": {"model_path": "x"}}} | change
    assert not VALIDATOR.is_valid(data)
    with pytest.raises(ConfigError):
        loads(json.dumps(data))
