"""Plain data is looked at and changed by path, in copies."""

from llmux.config.edit import found, removed, replaced

DATA = {"a": {"b": [1, {"c": 2}]}, "d": 3}


def test_found() -> None:
    assert found(DATA, ("a", "b", 1, "c")) == 2
    assert found(DATA, ()) is DATA
    assert found(DATA, ("a", "x", "y")) is None
    assert found(DATA, ("a", "b", 7)) is None
    assert found(DATA, ("d", "e")) is None


def test_changes_are_made_in_copies() -> None:
    assert replaced(DATA, ("a", "b", 1, "c"), 5) == {"a": {"b": [1, {"c": 5}]}, "d": 3}
    assert removed(DATA, ("a", "b")) == {"a": {}, "d": 3}
    assert removed(DATA, ("x",)) == DATA
    assert DATA == {"a": {"b": [1, {"c": 2}]}, "d": 3}
