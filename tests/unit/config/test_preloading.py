"""Which models can be preloaded together, and in which groups they start."""

from typing import Any

import pytest

from llmux.config import checks
from llmux.config.placement import declared_gpus, placements
from llmux.config.preloading import groups
from llmux.config.settings import Settings
from llmux.errors import ConfigError

TWO = [{"memory": "10GiB"}, {"memory": "10GiB"}]


def sized(gib: int, **more: Any) -> dict[str, Any]:
    return {"gpu_memory": f"{gib}GiB", **more}


def settings(models: dict[str, dict[str, Any]], gpus: list[dict[str, Any]], **top: Any) -> Settings:
    described = {name: {"model_path": "x"} | model for name, model in models.items()}
    return Settings.model_validate({"models": described, "gpus": gpus, **top})


def grouped(models: dict[str, dict[str, Any]], gpus: list[dict[str, Any]], *preload: str) -> list[list[str]]:
    configured = settings(models, gpus, preload=preload)
    found = declared_gpus(configured, {})
    places = {name: placements(configured, name, found) for name in preload}
    return [list(group) for group in groups(places, found)]


def problems(configured: Settings) -> list[tuple[str, str]]:
    return [(problem.path, problem.message) for problem in checks.problems(configured)]


def test_models_on_different_gpus_begin_together_and_all_keep_their_order() -> None:
    models = {"a": sized(6), "b": sized(6), "c": sized(4), "both": sized(4, gpus=2)}
    assert grouped(models, TWO, "a", "b") == [["a", "b"]]
    assert grouped(models, TWO, "a", "b", "c") == [["a", "b"], ["c"]]
    assert grouped(models, TWO, "both", "a", "b") == [["both"], ["a", "b"]]
    assert grouped(models, TWO, "c") == [["c"]]
    assert grouped(models, TWO) == []


def test_what_needs_no_gpu_waits_for_none() -> None:
    models = {"a": sized(6), "r": {"engine": "remote", "url": "http://127.0.0.1:1"}, "b": sized(6)}
    assert grouped(models, TWO, "a", "r", "b") == [["a", "r", "b"]]


def test_a_model_for_which_another_would_leave_is_refused() -> None:
    models = {"a": sized(6), "b": sized(6), "c": sized(6)}
    message = "'c' does not fit on the GPUs beside 'a', 'b', so that one of them would leave for it"
    assert problems(settings(models, TWO, preload=["a", "b", "c"])) == [("preload", message)]
    with pytest.raises(ConfigError, match="'c' does not fit on the GPUs beside 'a', 'b'"):
        grouped(models, TWO, "a", "b", "c")


def test_without_sizes_only_one_can_be_there() -> None:
    models: dict[str, dict[str, Any]] = {"a": {}, "b": {}}
    assert problems(settings(models, [], preload=["a"])) == []
    message = "'b' does not fit on the GPUs beside 'a', so that one of them would leave for it"
    assert problems(settings(models, [], preload=["a", "b"])) == [("preload", message)]


def test_the_default_model_must_not_push_a_preloaded_one_away() -> None:
    models = {"a": sized(6), "b": sized(6), "c": sized(4)}
    assert problems(settings(models, TWO, preload=["a", "b"], default_model="c")) == []
    assert problems(settings(models, TWO, preload=["a", "b"], default_model="a")) == []
    message = "does not fit beside the models of preload: they would leave for it once they are idle"
    assert problems(settings(models, TWO[:1], preload=["a"], default_model="b")) == [("default_model", message)]


def test_only_models_can_be_named_and_each_once() -> None:
    configured = settings({"a": {}}, [], preload=["a", "a"], default_model="aa")
    assert problems(configured) == [
        ("default_model", "'aa' is not the key of a model"),
        ("preload", "names 'a' 2 times"),
    ]
    assert ("preload.0", "'b' is not the key of a model") in problems(settings({"a": {}}, [], preload=["b"]))


def test_the_default_model_has_no_idle_time() -> None:
    configured = settings({"a": {"idle_seconds": 5}}, [], default_model="a")
    assert problems(configured) == [("models.a.idle_seconds", "'a' is the default_model, which stays when it is idle")]
