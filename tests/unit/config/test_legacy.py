"""Old keys are renamed and converted; the rest is left as it is."""

from typing import Any

import pytest

from llmux.config.legacy import POLICY, TOP, OldKey, translate


@pytest.mark.parametrize(
    ("old", "value", "new", "expected"),
    [
        ("request_timeout_secs", 300, "request_timeout_seconds", 300),
        ("min_active_secs", 5, "min_active_seconds", 5),
        ("coalesce_window_ms", 2000, "coalesce_window_seconds", 2.0),
        ("max_wait_secs", 15, "max_wait_seconds", 15),
        ("tick_interval_ms", 500, "tick_interval_seconds", 0.5),
        ("min_quantum_ms", 2500, "min_quantum_seconds", 2.5),
        ("sleep_level", 2, "eviction", 2),
    ],
)
def test_every_old_key_of_the_policy(old: str, value: int, new: str, expected: float) -> None:
    result = translate({"policy": {old: value}})
    assert result.data == {"policy": {new: expected}}
    assert result.written == {("policy", new): old}
    assert result.problems == []


def test_top_level_and_models() -> None:
    data = {"startup_timeout_secs": 600, "max_sleeping": 2, "models": {"a": {"sleep_level": 1}, "b": {"port": 1}}}
    result = translate(data)
    assert result.data == {"start_timeout_seconds": 600, "models": {"a": {"eviction": 1}, "b": {"port": 1}}}
    assert [warning.path for warning in result.warnings] == ["max_sleeping"]
    assert data["max_sleeping"] == 2, "the data given is not changed"


@pytest.mark.parametrize("key", TOP + POLICY, ids=lambda key: key.old)
def test_old_and_new_together_are_a_problem(key: OldKey) -> None:
    section = {key.old: 1, key.new: 1}
    result = translate(section if key in TOP else {"policy": section})
    (problem,) = result.problems
    assert problem.path == (key.old if key in TOP else f"policy.{key.old}")
    assert key.new in problem.message
    assert key.new in problem.remedy


@pytest.mark.parametrize("key", ["min_quantum_ms", "min_quantum_seconds"])
def test_the_warning_about_the_quantum_names_the_key_as_written(key: str) -> None:
    (warning,) = translate({"policy": {key: 1}}).warnings
    assert warning.path == f"policy.{key}"


@pytest.mark.parametrize("value", ["500", True, None, [1]])
def test_an_invalid_number_is_left_to_the_validation(value: Any) -> None:
    assert translate({"policy": {"tick_interval_ms": value}}).data == {"policy": {"tick_interval_seconds": value}}


@pytest.mark.parametrize("data", [{"policy": 5}, {"models": []}, {"models": {"a": None}}])
def test_a_value_that_is_no_mapping_is_left_to_the_validation(data: dict[str, Any]) -> None:
    assert translate(data).data == data
