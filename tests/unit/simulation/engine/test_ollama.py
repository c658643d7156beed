"""What a keep_alive means, and a command line of Ollama's."""

import pytest

from llmux.simulation.engine.ollama import FOR_EVER, keep_alive_seconds, parse


def test_keep_alive() -> None:
    durations = {"0": 0.0, "-1": FOR_EVER, "-1m": FOR_EVER, "1h30m": 5400.0, "250ms": 0.25}
    assert {text: keep_alive_seconds(text) for text in durations} == durations
    assert [keep_alive_seconds(number) for number in (0, 30, 1.5, -1)] == [0.0, 30.0, 1.5, FOR_EVER]


@pytest.mark.parametrize("value", ["", "soon", "5 m", True])
def test_a_wrong_keep_alive(value: object) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        keep_alive_seconds(value)


def test_the_command_line_and_ollamas_variables() -> None:
    options, _, _ = parse(["serve"], {})
    assert (options.host, options.port, options.max_loaded, options.max_running) == ("127.0.0.1", 11434, 3, 1)
    assert options.keep_alive_seconds_by_default == 300.0
    variables = {"OLLAMA_HOST": "http://0.0.0.0:99", "OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_NUM_PARALLEL": "2"}
    variables |= {"OLLAMA_MAX_LOADED_MODELS": "1", "OLLAMA_MAX_QUEUE": "4", "LLMUX_SIM_MODELS": "a:latest=5,b:7b=6"}
    options, _, _ = parse(["serve"], variables)
    assert (options.host, options.port, options.max_loaded, options.max_running) == ("0.0.0.0", 99, 1, 2)
    assert (options.keep_alive_seconds_by_default, options.max_queue) == (FOR_EVER, 4)
    assert options.models == {"a": 5, "b:7b": 6}


@pytest.mark.parametrize(
    ("words", "variables"), [(["run", "m"], {}), (["serve"], {"OLLAMA_KEEP_ALIVE": "x"}), (["--sim-models", "a"], {})]
)
def test_a_bad_one_ends_with_code_2(words: list[str], variables: dict[str, str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(words, variables)
