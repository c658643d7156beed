"""An engine's command line is read as argparse reads it."""

import pytest

from llmux.engines import arguments, vllm_arguments
from llmux.engines.vllm import Vllm


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param([], None, id="absent"),
        pytest.param(["--tensor-parallel-size", "4"], 4, id="two-words"),
        pytest.param(["--tensor-parallel-size=4"], 4, id="one-word"),
        pytest.param(["-tp", "4"], 4, id="short"),
        pytest.param(["-tp=4"], 4, id="short-one-word"),
        pytest.param(["--tensor_parallel_size", "4"], 4, id="underscores"),
        pytest.param(["-tp", "2", "--tensor-parallel-size", "8"], 8, id="last-wins"),
        pytest.param(["--other=-tp", "--label", "x", "-tp", "2"], 2, id="among-others"),
        pytest.param(["--tensor-parallel-size-x", "4"], None, id="longer-flag"),
    ],
)
def test_tensor_parallel_size_in_every_spelling(words: list[str], expected: int | None) -> None:
    assert arguments.number(words, vllm_arguments.GPU_FACTORS[0]) == expected


@pytest.mark.parametrize("word", ["two", "", "0", "-1", "1.5", "²"])
def test_an_invalid_number_is_reported_with_the_flag_and_the_word(word: str) -> None:
    with pytest.raises(ValueError, match="--max-num-seqs needs a whole number of at least 1") as caught:
        arguments.number([f"--max-num-seqs={word}"], vllm_arguments.MAX_IN_FLIGHT)
    assert repr(word) in str(caught.value)


def test_a_flag_at_the_end_without_its_value_is_no_number() -> None:
    with pytest.raises(ValueError, match="not ''"):
        arguments.number(["--max-num-seqs"], vllm_arguments.MAX_IN_FLIGHT)


def test_negative_numbers_are_values() -> None:
    assert arguments.value(["--offset", "-5", "--scale", "-.5"], ["--offset"]) == "-5"
    assert arguments.value(["--offset", "-5", "--scale", "-.5"], ["--scale"]) == "-.5"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["--enforce-eager"], True),
        (["--enforce_eager"], True),
        (["--no-enforce-eager"], False),
        (["--enforce-eager", "--no-enforce-eager"], False),
        (["--no-enforce-eager", "--enforce-eager"], True),
    ],
)
def test_switched_on(words: list[str], expected: bool) -> None:
    assert arguments.switched_on(words, "--enforce-eager") is expected


def test_present_finds_both_spellings() -> None:
    assert arguments.present(["--port=1", "--uds", "/x"], Vllm.reserved_flags) == ("--port", "--uds")


@pytest.mark.parametrize(
    ("words", "modules"),
    [
        (["--lora-modules", "sql=/lora/sql", "b=org/b=c"], [("sql", "/lora/sql"), ("b", "org/b=c")]),
        (["--lora-modules", '{"name": "sql", "path": "/l", "base_model_name": "base"}'], [("sql", "/l")]),
        (["--lora_modules=sql=/l"], [("sql", "/l")]),
        (["--lora-modules", "a=/a", "--lora-modules", "b=/b"], [("b", "/b")]),
        (["--lora-modules", "", "=x", "no", "[1]", '{"name": 1, "path": "/"}', '{"a=b,"'], []),
        (["--enable-lora"], []),
    ],
)
def test_adapters(words: list[str], modules: list[tuple[str, str]]) -> None:
    assert list(vllm_arguments.lora_modules(words)) == modules


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("16384", 16384),
        ("8k", 8000),
        ("8K", 8192),
        ("25.6k", 25600),
        ("1m", 1_000_000),
        ("1M", 1 << 20),
        ("2g", 2 * 10**9),
        ("-1", None),
        ("auto", None),
        ("8.5K", None),
        ("8.5", None),
        ("k", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_lengths_are_read_as_vllm_reads_them(text: str, tokens: int | None) -> None:
    assert vllm_arguments.max_model_length(["--max-model-len", text]) == tokens
    assert vllm_arguments.max_model_length([f"--max_model_len={text}"]) == tokens
    assert vllm_arguments.max_model_length(["--seed", "1"]) is None


def test_several_served_names_are_read_and_can_be_removed() -> None:
    words = ["--seed", "1", "--served-model-name", "a", "b", "--enforce-eager", "--served_model_name=c"]
    assert vllm_arguments.served_names(words[:6]) == ("a", "b")
    assert vllm_arguments.served_names(words) == ("c",)
    assert arguments.without(words, vllm_arguments.SERVED_NAMES) == ("--seed", "1", "--enforce-eager")
