"""From a file to settings: all problems are reported at once, and secrets come from the environment."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmux.config.load import FILE_BYTES_MAX, load, loads, removed, replaced, value_at
from llmux.core.eviction import Drain
from llmux.errors import ConfigError, Problem

MINIMAL = "models: {a: {model_path: x}}\n"
DATA = {"a": {"b": [1, {"c": 2}]}, "d": 3}


def problems(text: str, environment: dict[str, str] | None = None) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        loads(text, "llmux.yaml", environment or {})
    assert caught.value.source == "llmux.yaml"
    return list(caught.value.problems)


def paths(text: str) -> list[str]:
    return [problem.path for problem in problems(text)]


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "llmux.yaml"
    file.write_text("\ufeff" + MINIMAL, encoding="utf-8")
    loaded = load(file)
    assert list(loaded.settings.models) == ["a"]
    assert loaded.warnings == ()


def test_yaml_and_json_load_alike() -> None:
    yaml = """
models:
  a: {model_path: x, port: 8001, extra_args: [--seed, 1.10], eviction: offload+keep_running}
  b:
    model_path: y
    env: {A: 1}
policy: {policy_type: cost_aware, tick_interval_ms: 250, drain_before_switch: true}
admin_port: null
share_gpus: true
"""
    data = {
        "models": {
            "a": {"model_path": "x", "port": 8001, "extra_args": ["--seed", "1.10"], "eviction": 1},
            "b": {"model_path": "y", "env": {"A": "1"}},
        },
        "policy": {"policy_type": "cost_aware", "tick_interval_seconds": 0.25, "drain_before_switch": True},
        "admin_port": None,
        "share_gpus": True,
    }
    assert loads(yaml) == loads(json.dumps(data)) == loads(json.dumps(data, indent="\t"))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, Drain.FREEZE),
        ({"max_wait_secs": 20}, Drain.WAIT),
        ({"max_wait_secs": 20, "drain_before_switch": False}, Drain.ABORT),
    ],
)
def test_with_keys_of_077_a_switch_waits_for_requests_as_there(policy: dict[str, Any], expected: Drain) -> None:
    data = {"models": {"a": {"model_path": "x", "eviction": "offload+keep_running"}}, "policy": policy}
    assert loads(json.dumps(data)).settings.drain_of("a") is expected


def test_what_a_model_says_of_its_own_drain_holds_with_keys_of_077_too() -> None:
    model = {"model_path": "x", "sleep_level": 1, "drain": "freeze", "gpu_memory": "1GiB"}
    loaded = loads(json.dumps({"models": {"a": model, "b": model | {"drain": None}}}))
    assert [loaded.settings.drain_of(name) for name in "ab"] == [Drain.FREEZE, Drain.WAIT]


def test_secrets_come_from_the_environment() -> None:
    loaded = loads(MINIMAL + "admin_key: ${KEY}\napi_keys: [plain, '${KEY}']\n", environment={"KEY": "hush"})
    assert loaded.settings.admin_key is not None
    assert loaded.settings.admin_key.get_secret_value() == "hush"
    assert [key.get_secret_value() for key in loaded.settings.api_keys] == ["plain", "hush"]
    assert "hush" not in repr(loaded)


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMUX_TEST_KEY", "hush")
    admin_key = loads(MINIMAL + "admin_key: ${LLMUX_TEST_KEY}").settings.admin_key
    assert admin_key is not None
    assert admin_key.get_secret_value() == "hush"


def test_all_problems_at_once() -> None:
    text = """
models:
  a:
    model_path: x
    port: 3000
    evicton: 3
    extra_args: [--port, 80, --max-num-seqs=x, true]
  b/../c:
    eviction: {weights: keep, process: keep_running}
  c: {model_path: y, sleep_level: 9}
  c: {model_path: y, engine: llama_cpp, eviction: retain+keep_running, checkpoint_path: /nonexistent/images}
policy: {policy_type: lru, request_timeout_secs: -1, coalesce_window_ms: 2, coalesce_window_seconds: 3}
admin_key: ${NOT_SET}
warmup: yes
"""
    assert sorted(paths(text)) == [
        "admin_key",
        "checkpoint",
        "models.a.evicton",
        "models.a.extra_args",
        "models.a.extra_args",
        "models.a.extra_args.3",
        "models.a.port",
        "models.b/../c",
        "models.b/../c.eviction.weights",
        "models.b/../c.model_path",
        "models.c",
        "models.c.checkpoint_path",
        "models.c.eviction",
        "policy.coalesce_window_ms",
        "policy.policy_type",
        "policy.request_timeout_secs",
        "warmup",
    ]


def test_a_wrong_value_is_one_problem_and_not_two() -> None:
    assert paths("models: {a: {model_path: x, eviction: retain+cuda_suspend}}\ncheckpoint: 5\n") == ["checkpoint"]
    assert paths("models: {a: {model_path: x, eviction: {process: keep_running}}, b: {model_path: y}}") == [
        "models.a.eviction.weights"
    ]
    assert paths(MINIMAL + "checkpoint: {object_store: {endpoint: https://x, bucket: y, access_key: k}}") == [
        "checkpoint.object_store.secret_key"
    ]


def test_a_wrong_value_under_an_old_key_is_reported_as_it_is_written() -> None:
    assert paths("models: {a: {model_path: x, sleep_level: 7}}\npolicy: {tick_interval_ms: 0}\n") == [
        "models.a.sleep_level",
        "policy.tick_interval_ms",
    ]


@pytest.mark.parametrize("text", ["", "- a\n", "5", "just words"])
def test_a_file_that_is_no_mapping(text: str) -> None:
    (problem,) = problems(text)
    assert problem.path == ""
    assert problem.remedy


@pytest.mark.parametrize("text", ["port: 1\n", "models: {}\n", "models: null\n", "models: [a]\n", "models: {a: 5}"])
def test_models_are_required(text: str) -> None:
    assert any(path.startswith("models") for path in paths(text))


def test_a_structure_that_contains_itself_is_refused() -> None:
    assert paths("models: &m {a: *m}\n")


def test_several_models_may_share_a_section() -> None:
    shared = "models:\n  a: &a {model_path: x, sleep_level: 1}\n  b: *a\n  c: {<<: *a, model_path: y}\n"
    settings = loads(shared).settings
    assert {name: str(settings.eviction_of(name)) for name in settings.models} == dict.fromkeys(
        "abc", "offload+keep_running"
    )


def test_top_level_keys_for_anchors_are_ignored() -> None:
    text = "x-defaults: &d {model_path: x, env: {A: '${NOT_SET}'}}\nmodels: {a: {<<: *d, env: {}}}\n"
    assert loads(text, environment={}).settings.models["a"].model_path == "x"
    assert paths(MINIMAL + "x_defaults: {}\n") == ["x_defaults"]
    assert paths("models: {a: {model_path: x, x-defaults: {}}}\n") == ["models.a.x-defaults"]


def test_warnings_are_returned() -> None:
    two = "models: {a: {model_path: x}, b: {model_path: y}}\n"
    loaded = loads(two + "max_sleeping: 2\npolicy: {min_quantum_ms: 100, eviction: retain+keep_running}\n")
    assert [warning.path for warning in loaded.warnings] == ["max_sleeping", "policy.min_quantum_ms", "policy.eviction"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"models: \xff")
    (tmp_path / "large").write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    cases = {"absent": "does not exist", "": "Is a directory", "latin": "not UTF-8: byte 8", "large": "larger than"}
    for name, words in cases.items():
        with pytest.raises(ConfigError, match=words) as caught:
            load(tmp_path / name)
        assert caught.value.source == str(tmp_path / name)


def test_value_at() -> None:
    assert value_at(DATA, ("a", "b", 1, "c")) == 2
    assert value_at(DATA, ()) is DATA
    assert value_at(DATA, ("a", "x", "y")) is None
    assert value_at(DATA, ("a", "b", 7)) is None
    assert value_at(DATA, ("d", "e")) is None


def test_changes_leave_the_original_alone() -> None:
    assert replaced(DATA, ("a", "b", 1, "c"), 5) == {"a": {"b": [1, {"c": 5}]}, "d": 3}
    assert removed(DATA, ("a", "b")) == {"a": {}, "d": 3}
    assert removed(DATA, ("x",)) == DATA
    assert DATA == {"a": {"b": [1, {"c": 2}]}, "d": 3}
