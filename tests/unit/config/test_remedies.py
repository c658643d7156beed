"""Whoever slips is told what to write instead, and nobody is told what would be wrong as well."""

from typing import Any

import pytest
from pydantic import ValidationError

from llmux.config.problems import problems_of
from llmux.config.remedies import nearest
from llmux.config.settings import Settings


def remedy_of(model: dict[str, Any] | None = None, **top: Any) -> str:
    data = {"models": {"a": {"model_path": "x"} | (model or {})}} | top
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(data)
    (problem,) = problems_of(caught.value, Settings, data)
    return problem.remedy


@pytest.mark.parametrize(
    ("model", "top", "remedy"),
    [
        # True and false in other words.
        ({}, {"warmup": "yes"}, "write true"),
        ({}, {"warmup": "Off"}, "write false"),
        ({}, {"canary": False}, ""),
        # Durations and sizes with units.
        ({}, {"start_timeout_seconds": "5m"}, "times are numbers of seconds: write 300"),
        ({}, {"start_timeout_seconds": "1.5 hours"}, "times are numbers of seconds: write 5400"),
        ({"max_wait_seconds": "250ms"}, {}, "times are numbers of seconds: write 0.25"),
        ({}, {"start_timeout_seconds": "forever"}, "times are numbers of seconds"),
        ({}, {"max_body_bytes": "100MB"}, "it is a number of bytes: write 100000000"),
        ({}, {"max_body_bytes": "64MiB"}, "it is a number of bytes: write 67108864"),
        ({}, {"host_memory_reserve_mib": "4G"}, "it is a number of MiB: write 4096"),
        # Numbers that YAML and JSON do not write so.
        ({}, {"max_body_bytes": "1_000_000"}, "write 1000000"),
        ({}, {"port": "08000"}, "write 8000"),
        ({}, {"port": "three"}, ""),
        # Lists and mappings where a text belongs, and the reverse.
        ({"aliases": "gpt-4"}, {}, "write a list: [NAME]"),
        ({}, {"cors_origins": "https://a"}, 'write a list: ["https://chat.example.org"]'),
        ({"command": ["vllm", "serve"]}, {}, "write the program alone; further words go into extra_args"),
        ({}, {"host": ["::"]}, "write one address, such as 127.0.0.1, or * for all"),
        ({"extra_args": [{"--max-model-len": 4096}]}, {}, "write the flag and its value as two items"),
        ({"extra_args": [{"name": "n", "path": "p"}]}, {}, "put it into single quotes, as '{\"name\": …}'"),
        ({}, {"models": {"a": "model_path:x"}}, "write a blank after model_path:"),
        # Keys in the wrong place.
        ({}, {"aliases": {"gpt-4": "a"}}, "it belongs below each model"),
        ({}, {"amortization_factor": 0.5}, "it belongs below policy"),
        ({"warmup": True}, {}, "it belongs to the top level"),
        ({}, {"policy": {"canary": "off"}}, "it belongs to the top level"),
        ({}, {"bind": "::"}, "`llmux schema` lists all keys"),
        ({}, {"defaults": {}}, "`llmux schema` lists all keys; for YAML's anchors, name it x-defaults"),
        ({"\u00a0 port": 1}, {}, "there are blanks of another kind before it: indent with plain ones"),
        # Other spellings of words.
        ({}, {"policy": {"policy_type": "FIFO"}}, "did you mean 'fifo'?"),
        ({}, {"log_level": "WARN"}, "did you mean 'warning'?"),
        ({"eviction": "Offload+KeepRunning"}, {}, "did you mean 'offload+keep_running'?"),
        ({"eviction": "offload"}, {}, "did you mean 'offload+keep_running'?"),
        ({"eviction": "offload + keep_running"}, {}, "did you mean 'offload+keep_running'?"),
        ({"eviction": "stop"}, {}, "did you mean 'retain+stop'?"),
        ({"eviction": "x"}, {}, "retain, offload or discard + keep_running, cuda_suspend, checkpoint or stop"),
    ],
)
def test_remedies(model: dict[str, Any], top: dict[str, Any], remedy: str) -> None:
    assert remedy_of(model, **top) == remedy


def test_the_engines_flags_have_a_place_of_their_own() -> None:
    in_extra_args = "--gpu-memory-utilization is a flag of the engine's, and goes into extra_args"
    assert remedy_of({"gpu_memory_utilization": 0.9}) == in_extra_args
    assert remedy_of({"kv_cache_dtype": "fp8"}).endswith("; the engine's flags go into extra_args")


def test_nearest() -> None:
    assert nearest("fio", ["fifo", "other"]) == "did you mean 'fifo'?"
    assert nearest("zzz", ["fifo", "other"]) == "allowed: fifo, other"
    assert nearest("zzz", ["fifo"], otherwise="") == ""
