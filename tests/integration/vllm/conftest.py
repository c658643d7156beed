"""What the tests with the real vLLM share: the engines' own answers, asked for once."""

import pytest

from tests.support.real_vllm import Alone, greedy_answers


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop for a module, so that its tests can share a server."""
    return "asyncio"


@pytest.fixture(scope="session")
def alone() -> Alone:
    """What the models say when they are asked without llmux."""
    answers = greedy_answers(("a", "b"))
    # A swapped answer could not be seen in a question to which both say the same.
    assert all(answers["a"][question] != answers["b"][question] for question in answers["a"])
    return answers
