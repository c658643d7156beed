"""Which engine a command line is, and which of its words llmux passes on."""

import shlex
from typing import Any

import pytest

from llmux.config.migration.draft import ModelDraft
from llmux.config.migration.engines import Command, draft_model


def draft_of(command: str, **env: str) -> ModelDraft:
    return draft_model("a", Command(tuple(shlex.split(command)), env=env))


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("llama-server -m x", {"engine": "llama_cpp", "model_path": "x"}),
        ("llama-server --model=x", {"engine": "llama_cpp", "model_path": "x"}),
        ("./llama-server.exe -m x", {"engine": "llama_cpp", "model_path": "x", "command": "./llama-server.exe"}),
        ("ik_llama_server -m x", {"engine": "llama_cpp", "model_path": "x", "command": "ik_llama_server"}),
        ("llama-server -hfr o/r -hff f", {"model_path": "hf:o/r", "extra_args": ["-hff", "f"]}),
        ("llama-server -m x --no_mmap -a b -ngl 9 word", {"extra_args": ["--no_mmap", "-ngl", "9", "word"]}),
        ("llama-server -c -1 -m x", {"model_path": "x", "extra_args": ["-c", "-1"]}),
        ("llama-server --agent -m x --reuse-port -fa on", {"extra_args": ["-fa", "on"]}),
        ("env A=1 B=x=y llama-server -m x", {"engine": "llama_cpp", "env": {"A": "1", "B": "x=y"}}),
        ("env -i llama-server -m x", {"engine": "command", "start_command": "env -i llama-server -m x"}),
        ("env A=1", {"engine": "command", "start_command": "env A=1"}),
        (
            "vllm serve o/m --uds u --dtype half",
            {"engine": "vllm", "model_path": "o/m", "extra_args": ["--dtype", "half"]},
        ),
        (
            "vllm serve --dtype half --model o/m",
            {"engine": "vllm", "model_path": "o/m", "extra_args": ["--dtype", "half"]},
        ),
        ("vllm serve --config f", {"engine": "command", "start_command": "vllm serve --config f"}),
        ("vllm bench o/m", {"engine": "command"}),
        ("/v/bin/python3.12 -m sglang.launch_server --model m", {"engine": "sglang", "command": "/v/bin/python3.12"}),
        ("python3 -m sglang.launch_server --tp 2", {"engine": "command"}),
        ("python3 -m other", {"engine": "command", "start_command": "python3 -m other"}),
        ("docker --context c run i", {"start_command": "docker --context c run --name llmux-a i"}),
        ("docker start -a i", {"engine": "command", "start_command": "docker start -a i"}),
    ],
)
def test_the_engine_of_a_command(command: str, keys: dict[str, Any]) -> None:
    found = draft_of(command).keys
    assert {key: found.get(key) for key in keys} == keys
    assert ("stop_command" in found) == (" run " in command)


def test_of_two_ways_to_name_the_weights_the_repository_counts_as_for_llama_server() -> None:
    draft = draft_of("llama-server -m x -hf o/r")
    assert draft.keys == {"engine": "llama_cpp", "model_path": "hf:o/r"}
    assert [(note.about, note.value) for note in draft.all_notes()] == [("-m", "x")]


def test_the_weights_may_be_named_by_a_variable_of_llama_server() -> None:
    assert draft_of("llama-server -c 1", LLAMA_ARG_MODEL="/m.gguf").keys["model_path"] == "/m.gguf"
    assert draft_of("llama-server -c 1", LLAMA_ARG_HF_REPO="o/r").keys["model_path"] == "hf:o/r"


def test_a_variable_in_the_command_overrides_that_of_the_model() -> None:
    assert draft_of("env A=2 llama-server -m x", A="1", B="1").keys["env"] == {"A": "2", "B": "1"}


def test_what_would_hide_the_engine_is_said() -> None:
    (note,) = draft_of("numactl -N 0 /opt/llama-server -m x").all_notes()
    assert note.text == "run by the engine 'command': numactl stands before /opt/llama-server"


@pytest.mark.parametrize(
    ("command", "about"),
    [
        ("docker run --name c -d -p 127.0.0.1:8080:8080 i", ["-d"]),
        ("docker run --name c -p 8080:8080 i", ["-p"]),
        ("docker run --name c --publish=8080:8080/tcp i", ["-p"]),
        ("serve --prefix {name} x", ["{name}"]),
        ("llama-server -m x --sleep-idle-seconds -1", []),
        ("python -m vllm.entrypoints.openai.api_server --model m", ["cmd"]),
    ],
)
def test_what_behaves_differently_is_said(command: str, about: list[str]) -> None:
    assert [note.about for note in draft_of(command).all_notes()] == about


def test_an_ordinary_program_needs_no_remark() -> None:
    assert list(draft_of("whisper-server -m x").all_notes()) == []
