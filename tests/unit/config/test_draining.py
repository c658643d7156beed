"""Whose requests are waited for at a switch though nothing says so, and what is said about it."""

from typing import Any

from llmux.config.draining import Drained, drained
from llmux.config.settings import Settings

KEEPING = "offload+keep_running"


def found(models: dict[str, dict[str, Any]], **top: Any) -> list[Drained]:
    own = {name: {"model_path": "x"} | model for name, model in models.items()}
    return list(drained(Settings.model_validate({"models": own} | top)))


def test_an_eviction_that_ends_the_engine_is_named_with_those_that_do_not() -> None:
    (one,) = found({"a": {}, "b": {"eviction": KEEPING}}, drain_timeout_seconds=30)
    assert one.models == ("a",)
    assert one.why == "retain+stop cannot keep its requests"
    assert "at most 30 s" in one.cost
    assert KEEPING in one.remedy and "drain: wait" in one.remedy


def test_a_kind_of_engine_that_cannot_is_named() -> None:
    command = {"engine": "command", "command": "x"}
    (one,) = found({"a": command, "b": command, "c": {"eviction": KEEPING}})
    assert one.models == ("a", "b")
    assert one.why == "an engine of the kind command cannot suspend its requests"
    assert str(one).startswith("a, b: an engine of the kind command")


def test_many_models_are_counted() -> None:
    (one,) = found({f"m{number}": {} for number in range(7)})
    assert str(one).startswith("m0, m1, m2, m3, m4 and 2 more: ")


def test_nothing_is_said_where_it_is_meant_or_without_effect() -> None:
    two: dict[str, dict[str, Any]] = {"a": {}, "b": {}}
    assert not found({name: {"drain": "wait"} for name in two})
    assert not found(two, policy={"drain_before_switch": True})
    assert not found(two, policy={"policy_type": "fifo"})
    assert not found({"a": {}}), "nobody else takes a turn"
    assert not found({"a": {}, "b": {"pin": "keep"}}), "nobody else takes a turn"
    assert not found({"a": {"eviction": KEEPING}, "b": {"eviction": KEEPING}})
