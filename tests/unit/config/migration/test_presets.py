"""Presets files: what is refused, with its line, and how keys become flags."""

from typing import Any

import pytest
import yaml

from llmux.config.migration.convert import convert
from llmux.errors import ConfigError


def arguments(*lines: str) -> Any:
    text = "\n".join(("[a]", "model = /m.gguf", *lines))
    return yaml.safe_load(convert(text, "models.ini").text)["models"]["a"].get("extra_args", [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nmodel = x\nnonsense\n", "line 3: neither [section] nor key = value"),
        ("[a]\nmodel = x\n[a]\nm = y\n", "line 3: the section [a] is there since line 1"),
        ("; c\n[]\nmodel = x\n", "line 2: the section has no name"),
        ("[*]\nc = 1\n", "there is no section for a model"),
        ("[*]\nstop-timeout = soon\n[a]\nm = x\n", "line 2: stop-timeout must be a whole number"),
        ("version = 1\n\n[a\n", "line 3: neither [section]"),
        ("[a]\n9x = 1\n", "line 2: neither [section]"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        convert(text, "models.ini")
    assert message in "\n".join(map(str, refused.value.problems))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("c = 1", ["-c", "1"]),
        ("ctx-size=1", ["--ctx-size", "1"]),
        ("ctx_size = 1", ["--ctx_size", "1"]),
        ("LLAMA_ARG_CTX_SIZE = 1", ["--ctx-size", "1"]),
        ("LLAMA_ARG_N_PARALLEL = 2", ["--parallel", "2"]),
        ("fa = on ; always", ["-fa", "on"]),
        ("jinja = 1", ["--jinja"]),
        ("jinja = off", ["--no-jinja"]),
        ("no-jinja = true", ["--no-jinja"]),
        ("no-jinja = 0", ["--jinja"]),
        ("nkvo = enabled", ["-nkvo"]),
        ("webui = disabled", ["--no-ui"]),
        ("metrics = true", ["--metrics"]),
        ("metrics = false", []),
        ("host = 0.0.0.0", []),
        ("load-on-startup = true", []),
        ("\tn-gpu-layers\t=\tall\r", ["--n-gpu-layers", "all"]),
        ("lora =", ["--lora", ""]),
        ("tags = a\u2028b\fc", ["--tags", "a\u2028b\fc"]),
    ],
)
def test_a_key_becomes_a_flag(line: str, expected: list[str]) -> None:
    assert arguments(line) == expected


def test_a_models_own_key_overrides_the_common_one_under_any_of_its_names() -> None:
    text = "[*]\nctx-size = 1\njinja = on\n[a]\nm = x\nLLAMA_ARG_CTX_SIZE = 2\nno-jinja = on\n"
    model = yaml.safe_load(convert(text, "models.ini").text)["models"]["a"]
    assert model["extra_args"] == ["--ctx-size", "2", "--no-jinja"]


def test_of_two_names_of_a_flag_the_alphabetically_last_counts_as_in_llama_cpp() -> None:
    assert arguments("ctx-size = 1", "c = 2") == ["--ctx-size", "1"]
    assert arguments("c = 2", "ctx-size = 1") == ["--ctx-size", "1"]
    assert arguments("c = 1", "c = 2") == ["-c", "2"]
    text = convert("[a]\nm = x\nctx-size = 1\nc = 2\n", "models.ini").text
    assert "# c: line 4 has no effect: of the names of one flag in a section, line 3 counts" in text


def test_a_file_of_a_server_without_models_in_it_is_only_comments() -> None:
    converted = convert("[a]\nc = 1\n", "models.ini")
    assert yaml.safe_load(converted.text) == {"models": {}}
