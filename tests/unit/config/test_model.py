"""What one model's section says about its engine."""

from typing import Any

import pytest

from llmux.config.model import ModelSettings


def model(**keys: Any) -> ModelSettings:
    return ModelSettings.model_validate({"model_path": "org/a"} | keys)


def test_the_name_is_served_first_then_the_path_then_the_files_own_names() -> None:
    own = model(extra_args=["--served-model-name", "gpt-4", "name", "--seed", 1])
    assert own.served_names("name") == ("name", "org/a", "gpt-4")
    assert own.engine_arguments == ("--seed", "1")
    assert model().served_names("org/a") == ("org/a",)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"extra_args": ["--api-key", "k1", "k2"]}, "k1"),
        ({"extra_args": ["--api-key=k1"]}, "k1"),
        ({"env": {"VLLM_API_KEY": "k3"}}, "k3"),
        ({"extra_args": ["--api-key", "k1"], "env": {"VLLM_API_KEY": "k3"}}, "k1"),
    ],
)
def test_the_engines_own_api_key(keys: dict[str, Any], expected: str | None) -> None:
    assert model(**keys).engine_api_key == expected


def test_numbers_are_accepted_where_words_are_expected() -> None:
    own = model(extra_args=["--max-model-len", 4096], env={"OMP_NUM_THREADS": 4})
    assert own.extra_args == ("--max-model-len", "4096")
    assert own.env == {"OMP_NUM_THREADS": "4"}


@pytest.mark.parametrize(
    ("arguments", "share"),
    [
        ([], 0.92),
        (["--gpu-memory-utilization", 0.85], 0.85),
        (["--gpu_memory_utilization=0.5"], 0.5),
        (["--gpu-memory-utilization", "most"], None),
        (["--kv-cache-memory-bytes", "4G", "--gpu-memory-utilization", "0.9"], None),
    ],
)
def test_the_share_of_memory_that_a_start_needs(arguments: list[Any], share: float | None) -> None:
    assert model(extra_args=arguments).start_share == share
