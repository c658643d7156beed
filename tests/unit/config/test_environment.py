"""Secrets come from the environment where the file says so, and their absence is a problem."""

from typing import Any

import pytest

from llmux.config.environment import substitute

ENVIRONMENT = {"A_KEY": "one", "B_KEY": "two", "EMPTY": ""}


def test_every_secret_is_looked_up() -> None:
    data: dict[str, Any] = {
        "admin_key": "${A_KEY}",
        "api_keys": ["${A_KEY}", "plain", "${B_KEY}"],
        "checkpoint": {"object_store": {"access_key": "${A_KEY}", "secret_key": "${B_KEY}", "bucket": "${A_KEY}"}},
    }
    substituted, problems = substitute(data, ENVIRONMENT)
    assert substituted == {
        "admin_key": "one",
        "api_keys": ["one", "plain", "two"],
        "checkpoint": {"object_store": {"access_key": "one", "secret_key": "two", "bucket": "${A_KEY}"}},
    }
    assert problems == ()
    assert data["admin_key"] == "${A_KEY}"


@pytest.mark.parametrize("name", ["ABSENT", "EMPTY"])
def test_a_missing_or_empty_variable_is_a_problem(name: str) -> None:
    _, (problem,) = substitute({"api_keys": ["x", f"${{{name}}}"]}, ENVIRONMENT)
    assert problem.path == "api_keys.1"
    assert problem.message == f"the environment variable {name} is not set"


@pytest.mark.parametrize("value", ["${A_KEY} ", "${A_KEY}${B_KEY}", "${}", "${1}", "${A_KEY"])
def test_a_reference_is_the_whole_value(value: str) -> None:
    _, (problem,) = substitute({"admin_key": value}, ENVIRONMENT)
    assert problem.message == "begins with ${ but is not ${NAME}"


@pytest.mark.parametrize("value", ["$A_KEY", "a${A_KEY}", 5, None])
def test_everything_else_is_taken_as_it_is(value: object) -> None:
    assert substitute({"admin_key": value}, ENVIRONMENT) == ({"admin_key": value}, ())
