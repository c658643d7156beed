"""What one model's section says about its engine."""

from typing import Any

from llmux.config.model import ModelSettings


def model(**keys: Any) -> ModelSettings:
    return ModelSettings.model_validate({"model_path": "org/a"} | keys)


def test_numbers_are_accepted_where_words_are_expected() -> None:
    own = model(extra_args=["--max-model-len", 4096], env={"OMP_NUM_THREADS": 4})
    assert own.extra_args == ("--max-model-len", "4096")
    assert own.env == {"OMP_NUM_THREADS": "4"}
