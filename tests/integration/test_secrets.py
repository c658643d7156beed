"""What an engine prints reaches neither clients nor, where it is secret, anybody else."""

import sys
from pathlib import Path

from tests.support.bench import STOP, serving
from tests.support.command import run_llmux, write_config

SECRETS = ("swordfish", "abracadabra", "opensesame", "hocuspocus")


async def test_a_failed_start_tells_clients_its_cause_and_nobody_a_secret(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\nprint('a line', sys.argv, dict(os.environ))\nsys.exit(3)\n"
    )
    program.chmod(0o755)
    model = {
        **STOP,
        "command": str(program),
        "extra_args": ["--api-key", "swordfish"],
        "env": {"HF_TOKEN": "abracadabra", "ADMIN": "opensesame"},
    }
    async with serving(
        {"a": model}, tmp_path, environment={"X_SECRET": "hocuspocus"}, api_keys=["opensesame"]
    ) as bench:
        headers = {"Authorization": "Bearer opensesame"}
        body = {"model": "a", "messages": []}
        answer = await bench.call("POST /v1/chat/completions", body, headers=headers)
        models = await bench.call("GET /v1/models", headers=headers)
        assert answer.code == "model_unavailable"
        assert "the engine ended with exit code 3" in answer.text
        assert "GET /control/models/MODEL/logs" in answer.text
        assert "failed:the engine ended with exit code 3" in models.text
        assert "a line" not in answer.text + models.text
        for path in ("status", "models/a/story", "models/a/logs"):
            shown = (await bench.call(f"GET /control/{path}")).text
            assert "a line" in shown
            assert "***" in shown
            assert not any(secret in shown for secret in SECRETS)
        log = "\n".join(bench.server.log)
        assert "a line" in log
        assert not any(secret in log for secret in SECRETS)


async def test_a_port_that_is_taken_is_named_by_its_key(tmp_path: Path) -> None:
    async with serving({"a": STOP}, tmp_path) as bench:
        port = int(bench.server.url.rpartition(":")[2])
        for key in ("port", "metrics_port", "admin_port"):
            ports = {"port": 0, "metrics_port": 0, key: port}
            config = {"models": {"a": {"model_path": "x", "command": sys.executable}}, **ports}
            write_config(tmp_path, config)
            ended = await run_llmux("serve", directory=tmp_path)
            assert ended.code == 1
            assert (
                f"llmux: cannot listen on 127.0.0.1:{port} ({key}): address already in use; set {key} to"
                in ended.errors
            )
