"""Problems have a path, a plain sentence and a remedy."""

from typing import Any

import pytest
from pydantic import ValidationError

from llmux.config.problems import dotted, problems_of
from llmux.config.settings import Settings


def texts(model: dict[str, Any] | None = None, **top: Any) -> list[str]:
    data = {"models": {"a": {"model_path": "x"} | (model or {})}} | top
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(data)
    return [str(problem) for problem in problems_of(caught.value, Settings, data)]


@pytest.mark.parametrize(
    ("model", "top", "expected"),
    [
        ({"evicton": 1}, {}, "models.a.evicton: unknown key (did you mean 'eviction'?)"),
        (
            {"eviction": {"weights": "retain", "process": "stop", "zzz": 1}},
            {},
            "models.a.eviction.zzz: unknown key (allowed: weights, process)",
        ),
        ({}, {"prot": 1}, "prot: unknown key (did you mean 'port'?)"),
        ({}, {"policy": {"max_wait": 1}}, "policy.max_wait: unknown key (did you mean 'max_wait_seconds'?)"),
        ({}, {"checkpoint": {"image_dir": "x"}}, "checkpoint.image_dir: unknown key (did you mean 'images_dir'?)"),
        (
            {"eviction": {"weights": "ofload", "process": "stop"}},
            {},
            "models.a.eviction.weights: must be 'retain', 'offload' or 'discard', not 'ofload' "
            "(did you mean 'offload'?)",
        ),
        (
            {"eviction": {"weights": "retain"}},
            {},
            "models.a.eviction.process: the key is required and missing (add it)",
        ),
        ({"port": 0}, {}, "models.a.port: must be greater than or equal to 1"),
        (
            {"extra_args": "-tp 2"},
            {},
            'models.a.extra_args: must be a list (write a list with one word an item: [--max-model-len, "4096"])',
        ),
        (
            {"env": ["A=B"]},
            {},
            'models.a.env: must be a mapping of keys to values (write env: {NAME: "value"})',
        ),
        (
            {},
            {"models": [{"name": "a"}]},
            "models: must be a mapping of keys to values "
            "(write models: {NAME: {model_path: PATH}}, the name as the key)",
        ),
        ({}, {"api_keys": "k"}, 'api_keys: must be a list (write a list: ["${NAME}"])'),
        ({}, {"policy": "fifo"}, "policy: must be a mapping of keys to values (write policy: {policy_type: adaptive})"),
        (
            {},
            {"checkpoint": True},
            "checkpoint: must be a mapping of keys to values (write checkpoint: {} for its defaults)",
        ),
        ({"env": {"": "x"}}, {}, "models.a.env.'': the name of a variable must neither be empty nor contain '='"),
        ({}, {"port": "3000"}, "port: must be a whole number (write it without quotes)"),
        ({}, {"warmup": "true"}, "warmup: must be true or false (write it without quotes)"),
        ({}, {"host": 5}, "host: must be a text (put it into quotes)"),
        ({}, {"models": {}}, "models: must not be empty (add at least one model)"),
        ({}, {"models": {"a": None}}, "models.a: must be a mapping of keys to values (write a: {model_path: PATH})"),
        ({}, {"admin_key": ""}, "admin_key: must not be empty"),
    ],
)
def test_wording(model: dict[str, Any], top: dict[str, Any], expected: str) -> None:
    assert texts(model, **top) == [expected]


@pytest.mark.parametrize(
    ("model", "top", "path"),
    [
        ({}, {"start_timeout_seconds": None}, "start_timeout_seconds"),
        ({"model_path": None}, {}, "models.a.model_path"),
        ({"extra_args": ["--seed", None]}, {}, "models.a.extra_args.1"),
        ({"env": {"A": None}}, {}, "models.a.env.A"),
        ({}, {"canary": None}, "canary"),
    ],
)
def test_a_key_without_a_value(model: dict[str, Any], top: dict[str, Any], path: str) -> None:
    (text,) = texts(model, **top)
    assert text == f"{path}: has no value (write one, or remove it)"


def test_values_are_shown_as_the_file_has_them() -> None:
    assert texts(canary=True) == ["canary: must be 'off', 'sampled' or 'always', not true"]


def test_the_levels_are_listed() -> None:
    (text,) = texts({"eviction": 6})
    assert text.startswith("models.a.eviction: 6 is not a sleep level from 1 to 5 (1 offload+keep_running, 2 ")


def test_a_secret_is_never_shown() -> None:
    wrong = texts(admin_key=12345, api_keys=[67890], checkpoint={"object_store": {"secret_key": 13579}})
    assert len(wrong) == 3
    assert not any(secret in text for text in wrong for secret in ("12345", "67890", "13579"))


def test_paths_are_readable() -> None:
    assert dotted(("models", "a/b", "extra_args", 2)) == "models.a/b.extra_args.2"
    assert dotted(("models", "", "x\n")) == "models.''.'x\\n'"
