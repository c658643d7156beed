"""Pins and groups that the rest of the configuration contradicts."""

from typing import Any

import pytest

from llmux.config import checks
from llmux.config.settings import Settings

ONE = [{"memory": "10GiB"}]
TWO = [{"memory": "10GiB"}, {"memory": "10GiB"}]


def problems(
    sizes: dict[str, int], gpus: list[dict[str, Any]], pinned: str = "", **groups: Any
) -> list[tuple[str, str]]:
    models = {
        name: {"model_path": name, "gpu_memory": f"{size}GiB"} | ({"pin": "keep"} if name == pinned else {})
        for name, size in sizes.items()
    }
    settings = Settings.model_validate({"models": models, "gpus": gpus, "groups": groups})
    return [(problem.path, problem.message) for problem in checks.problems(settings)]


def test_groups_that_can_be_kept_are_no_problem() -> None:
    assert not problems({"a": 4, "b": 6, "c": 6}, ONE, "a", big={"models": ["b", "c"], "exclusive": True})
    assert not problems({"a": 9, "b": 9}, TWO, "a"), "each may be on a GPU of its own"
    assert not problems({"a": 9, "b": 9}, ONE, both={"models": ["a", "b"], "persistent": True})


def test_a_model_that_never_fits_beside_a_pinned_one_is_named() -> None:
    message = "'a' stays on the GPUs once it is there, and beside it there is never room for 'c'"
    assert problems({"a": 4, "b": 6, "c": 7}, ONE, "a") == [("models.a.pin", message)]


def test_a_model_that_never_fits_beside_one_of_a_persistent_group_is_named() -> None:
    found = problems({"a": 4, "b": 8, "c": 5}, ONE, ours={"models": ["a", "b"], "persistent": True})
    message = "'b' leaves for no model outside the group, and beside it there is never room for 'c'"
    assert found == [("groups.ours.persistent", message)]


def test_a_pinned_model_shuts_the_rest_of_an_exclusive_group_out() -> None:
    found = problems({"a": 4, "b": 4}, ONE, "a", g={"models": ["a", "b"], "exclusive": True})
    message = "'a' is pinned, so that no other model of this exclusive group could be served"
    assert found == [("groups.g.exclusive", message)]


@pytest.mark.parametrize(
    ("models", "path", "message"),
    [
        (["a", "bb"], "groups.g.models.1", "'bb' is not the key of a model"),
        (["a", "a"], "groups.g.models.1", "'a' is in the group twice"),
    ],
)
def test_the_members_of_a_group_are_models_each_named_once(models: list[str], path: str, message: str) -> None:
    assert problems({"a": 4, "b": 4}, ONE, g={"models": models}) == [(path, message)]


def test_where_nothing_is_known_of_memory_a_pinned_model_takes_it_all() -> None:
    models = {"a": {"model_path": "x", "pin": "keep"}, "b": {"model_path": "x"}}
    found = list(checks.problems(Settings.model_validate({"models": models})))
    assert [problem.path for problem in found] == ["models.a.pin"]
    assert "gpu_memory" in found[0].remedy


def test_of_a_need_that_is_not_declared_nothing_is_foretold() -> None:
    models = {
        "a": {"model_path": "x", "pin": "keep", "gpu_memory": "4GiB"},
        "b": {"model_path": "x", "engine": "command"},
    }
    models["b"] |= {"start_command": "serve --port {port}"}
    assert not list(checks.problems(Settings.model_validate({"models": models, "gpus": ONE})))
