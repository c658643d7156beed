"""What the checks of the engines' programs, versions and weights say."""

from pathlib import Path
from typing import Any

import pytest

from llmux.config.settings import Settings
from llmux.diagnosis.engines import check_engines
from llmux.diagnosis.findings import Finding, Level


def settings(**models: dict[str, Any]) -> Settings:
    return Settings.model_validate(
        {"models": {name: {"model_path": "/dev/null"} | one for name, one in models.items()}}
    )


def installed(directory: Path, package: str, version: str, program: str) -> str:
    """A virtual environment as far as the program and the package's metadata are concerned."""
    (directory / f"lib/python3.12/site-packages/{package}-{version}.dist-info").mkdir(parents=True)
    (directory / "bin").mkdir()
    executable = directory / "bin" / program
    executable.write_text("#!/bin/sh\nexit 1\n")
    executable.chmod(0o755)
    return str(executable)


def findings(configured: Settings, **environment: str) -> list[Finding]:
    return list(check_engines(configured, {"PATH": "/usr/bin:/bin", **environment}))


def test_the_version_is_read_beside_the_program(tmp_path: Path) -> None:
    program = installed(tmp_path, "vllm", "0.32.0+cpu", "vllm")
    one, _ = findings(settings(a={"command": program}, b={"command": program}))
    assert one == Finding(Level.OK, "vllm (a, b)", f"{program}, version 0.32.0+cpu")


def test_models_that_are_drained_because_they_cannot_freeze_are_named(tmp_path: Path) -> None:
    *_, one = findings(settings(a={"command": "no-such-program"}, b={"command": "no-such-program"}))
    assert one.level is Level.OK and one.what == "requests at a switch"
    assert one.found.startswith("a, b: retain+stop cannot keep its requests")


@pytest.mark.parametrize(
    ("version", "model", "lack"),
    [
        ("0.16.0", {"drain": "freeze"}, "suspend its requests, which vLLM does from 0.17 on"),
        ("0.17.0", {"drain": "freeze"}, None),
        ("0.16.0", {"eviction": "offload+keep_running"}, "suspend its requests, which vLLM does from 0.17 on"),
        ("0.29.1", {"eviction": "retain+keep_running"}, "release its KV cache alone, which vLLM does from 0.30 on"),
        ("0.30.0", {"eviction": "retain+keep_running"}, None),
        ("0.29.1", {"eviction": "offload+keep_running"}, None),
    ],
)
def test_what_a_version_of_vllm_cannot_do(
    tmp_path: Path, version: str, model: dict[str, Any], lack: str | None
) -> None:
    program = installed(tmp_path, "vllm", version, "vllm")
    _, *warnings = findings(settings(m={"command": program, **model}))
    assert [one.level for one in warnings] == ([] if lack is None else [Level.WARNING])
    assert lack is None or lack in warnings[0].found


@pytest.mark.parametrize(("version", "is_warned"), [("0.5.9", False), ("0.5.10", True)])
def test_what_a_version_of_sglang_cannot_do(tmp_path: Path, version: str, is_warned: bool) -> None:
    program = installed(tmp_path, "sglang", version, "python3")
    model = {"engine": "sglang", "command": program, "drain": "freeze", "eviction": "offload+keep_running"}
    _, *warnings = findings(settings(m=model))
    assert bool(warnings) is is_warned


def test_a_program_that_prints_its_version_is_asked(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text('#!/bin/sh\necho "version: 6789 (abcdef)" >&2\n')
    program.chmod(0o755)
    (one,) = findings(settings(m={"engine": "llama_cpp", "command": str(program)}))
    assert one.found == f"{program}, version 6789"


def test_a_version_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\nsleep 1000\n")
    program.chmod(0o755)
    (one,) = findings(settings(m={"command": str(program)}))
    assert one.level is Level.UNKNOWN


def test_weights_of_the_hub_are_looked_for_in_its_cache(tmp_path: Path) -> None:
    configured = settings(m={"model_path": "org/name", "command": "no-such-program"})
    (one,) = findings(configured, HF_HUB_CACHE=str(tmp_path))
    assert one.level is Level.WARNING and "HF_TOKEN, which is not set" in one.found
    assert "hf download org/name" in one.remedy
    (one,) = findings(configured, HF_HUB_CACHE=str(tmp_path), HF_TOKEN="t", HF_HOME=str(tmp_path))
    assert one.level is Level.WARNING and "HF_TOKEN" not in one.found
    (tmp_path / "models--org--name").mkdir()
    (one,) = findings(configured, HF_HUB_CACHE=str(tmp_path))
    assert one.level is Level.OK
    partial = tmp_path / "models--org--name" / "blobs" / "abc.incomplete"
    partial.parent.mkdir()
    partial.touch()
    (one,) = findings(configured, HF_HUB_CACHE=str(tmp_path))
    assert one.level is Level.WARNING and "interrupted" in one.found


def test_weights_that_may_not_be_downloaded_must_be_there(tmp_path: Path) -> None:
    variables = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    configured = settings(m={"model_path": "org/name", "command": "no-such-program", "env": variables})
    (one,) = findings(configured)
    assert one.level is Level.ERROR and "HF_HUB_OFFLINE" in one.found and "hf download org/name" in one.remedy
