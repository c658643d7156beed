"""What the tests with the real vLLM share: the engines' own answers, asked for once."""

import pytest

from tests.support.real_vllm import Question, greedy_answers


@pytest.fixture(scope="session")
def alone() -> dict[str, dict[Question, str]]:
    """What the models say when they are asked without llmux."""
    answers = greedy_answers(("a", "b"))
    # A swapped answer could not be seen in a question to which both say the same.
    assert all(answers["a"][question] != answers["b"][question] for question in answers["a"])
    return answers
