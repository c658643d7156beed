"""0.7.7's command line: every option in both spellings, and the exit codes."""

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import run_llmux
from tests.support.server import SIMULATED_ENGINE, http_client, llmux_server, simulated_config

MODELS: Mapping[str, Mapping[str, Any]] = {"a": {}, "b": {}}


async def llmux(*arguments: str, directory: Path | None = None) -> tuple[int, str, str]:
    """Run the program to its end; its exit code, standard output and standard error."""
    ended = await run_llmux(*arguments, directory=directory, limit_seconds=30)
    return ended.code, ended.output, ended.errors


def write_config(directory: Path, **changes: Any) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps({**simulated_config(MODELS), **changes}))
    return file


@pytest.mark.parametrize(
    ("spelling", "port_spelling"),
    [
        ("-c", "-p"),
        ("--config", "--port"),
        ("--config=", "--port="),
        *(
            pytest.param(spelling, port_spelling, marks=pytest.mark.slow)
            for number, spelling in enumerate(("-c", "--config", "--config="))
            for other, port_spelling in enumerate(("-p", "--port", "--port="))
            if number != other
        ),
    ],
)
async def test_config_and_port_without_a_command(
    tmp_path: Path, unused_ports: tuple[int, int], spelling: str, port_spelling: str
) -> None:
    file = write_config(tmp_path, port=unused_ports[1])
    port = unused_ports[0]
    where = [f"{spelling}{file}"] if spelling.endswith("=") else [spelling, str(file)]
    where += [f"{port_spelling}{port}"] if port_spelling.endswith("=") else [port_spelling, str(port)]
    async with llmux_server(None, tmp_path, command=where) as server:
        assert server.url == f"http://127.0.0.1:{port}"


async def test_plain_llmux_serves_the_file_config_json(tmp_path: Path) -> None:
    write_config(tmp_path)
    async with llmux_server(None, tmp_path, command=[]) as server, http_client() as session:
        async with session.get(f"{server.url}/health") as answer:
            assert answer.status == 200
        assert await server.terminate() == 0


@pytest.mark.parametrize("option", ["-v", pytest.param("--verbose", marks=pytest.mark.slow)])
async def test_verbose_shows_the_engines_output(tmp_path: Path, option: str) -> None:
    file = write_config(tmp_path)
    async with llmux_server(None, tmp_path, command=["-c", str(file), option]) as server, http_client() as session:
        await session.post(f"{server.url}/v1/completions", json={"model": "a", "prompt": "x"})
        await server.wait_for_log("Application startup complete")


async def test_the_engines_output_is_hidden_by_default(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    async with llmux_server(None, tmp_path, command=["-c", str(file)]) as server, http_client() as session:
        await session.post(f"{server.url}/v1/completions", json={"model": "a", "prompt": "x"})
        await server.wait_for_log("switched")
        assert server.find_in_log("Application startup complete") == []


async def test_rust_log_is_honoured(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    environment = {"RUST_LOG": "info,vllm=debug"}
    async with (
        llmux_server(None, tmp_path, command=["-c", str(file)], environment=environment) as server,
        http_client() as session,
    ):
        await session.post(f"{server.url}/v1/completions", json={"model": "a", "prompt": "x"})
        await server.wait_for_log("Application startup complete")


@pytest.mark.parametrize("option", ["-h", "--help"])
async def test_help(option: str) -> None:
    code, output, _ = await llmux(option)
    assert code == 0
    assert "serve" in output


async def test_logs_go_to_standard_error(tmp_path: Path, unused_ports: tuple[int, int]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file = write_config(tmp_path, port=taken.getsockname()[1])
        code, output, errors = await llmux("-c", str(file))
    assert (code, output) == (1, "")
    assert "llmux" in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-option"],
        ["-p", "many"],
        ["-p", "70000"],
        ["--config"],
        ["no-such-command"],
        ["-c", "config.json", "left-over"],
    ],
    ids=" ".join,
)
async def test_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    write_config(tmp_path)
    code, _, errors = await llmux(*arguments, directory=tmp_path)
    assert code == 2, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--validate", "a"], 1, "policies failed"),
        (["--validate", "a", "--policies", "retain+stop", "--port", "3001", "-v"], 0, "All policies passed."),
        (["--validate=a", "--policies", "offload+stop,discard+stop"], 0, "All policies passed."),
        (["--validate", "nobody"], 1, "configured models: a, b"),
        (["--checkpoint", "a"], 1, "the section is missing"),
        (["--checkpoint=a", "--eviction", "discard+checkpoint", "--no-warmup"], 1, "the section is missing"),
        (["--checkpoint", "a", "--eviction", "discard+stop"], 2, "makes no image"),
        (["--restore-detached", "a"], 1, "the section is missing"),
        (["--validate", "a", "--checkpoint", "a"], 2, "--checkpoint"),
        (["--validate", "a", "--restore-detached", "a"], 2, "--restore-detached"),
        (["--policies", "retain+stop"], 2, "--policies"),
        (["--no-warmup"], 2, "--no-warmup"),
    ],
    ids=str,
)
async def test_the_tools(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    """The engines here hold no memory that they could give back, so only what ends them passes."""
    file = write_config(tmp_path)
    found, output, errors = await llmux("--config", str(file), *arguments)
    assert found == code, errors
    assert said in output + errors
    assert "Traceback" not in errors
    assert "listening" not in errors


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "config.json"),
        ("{", "config.json"),
        ('{"models": {}}', "models"),
        ('{"models": {"a": {"model_path": "x", "port": 8001}}, "colour": 1}', "colour"),
        ('{"models": {"a": {"model_path": "x", "eviction": 9}}}', "models.a.eviction"),
        (
            '{"models": {"a": {"model_path": "x", "eviction": 3}}, "checkpoint": {}}',
            "CUDA processes cannot be suspended here",
        ),
        ('{"models": {"a": {"model_path": "x"}}, "policy": {"policy_type": "lifo"}}', "policy.policy_type"),
    ],
)
async def test_a_file_that_cannot_be_used(tmp_path: Path, text: str | None, complaint: str) -> None:
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    code, output, errors = await llmux("-c", str(file))
    assert (code, output) == (1, "")
    assert complaint in errors
    assert "Traceback" not in errors


async def test_an_engine_program_need_not_exist_at_the_start(tmp_path: Path) -> None:
    config = {**simulated_config(MODELS), "vllm_command": "/does/not/exist"}
    async with llmux_server(config, tmp_path) as server, http_client() as session:
        async with session.post(f"{server.url}/v1/completions", json={"model": "a", "prompt": "x"}) as answer:
            assert answer.status == 503
            assert "/does/not/exist" in await answer.text()


@pytest.mark.parametrize("key", ["port", "metrics_port", "admin_port"])
async def test_a_port_that_is_taken(tmp_path: Path, key: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file = write_config(tmp_path, **{key: port})
        code, _, errors = await llmux("-c", str(file))
    assert code == 1
    assert str(port) in errors
    assert "Traceback" not in errors


async def test_a_command_line_as_0_7_7_had_it_uses_the_named_engine(tmp_path: Path) -> None:
    """Arguments of the engine are in 0.7.7's order, ours after them, and extra_args last."""
    file = write_config(tmp_path)
    async with llmux_server(None, tmp_path, command=["--config", str(file)]) as server, http_client() as session:
        await session.post(f"{server.url}/v1/completions", json={"model": "a", "prompt": "x"})
        (engine,) = [one for one in server.descendants() if "llmux-sim-engine" in " ".join(one.cmdline())]
        words = engine.cmdline()
        words = words[words.index(SIMULATED_ENGINE) + 1 :]
        assert words[:2] == ["serve", "models/a"]
        assert words[words.index("--served-model-name") + 1 :][:2] == ["a", "models/a"]
        assert words[words.index("--host") + 1] == "127.0.0.1"
        assert words.index("--enable-sleep-mode") < words.index("--latency-ms")
        environment = engine.environ()
        assert (environment["NO_COLOR"], environment["VLLM_SERVER_DEV_MODE"]) == ("1", "1")
