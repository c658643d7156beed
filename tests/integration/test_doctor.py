"""``llmux doctor`` as a real program, on this machine, without rights, and with faults planted for real."""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import fake_criu
from tests.support.server import SIMULATED_ENGINE


def doctor(*arguments: str, prefix: tuple[str, ...] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    words = [*prefix, sys.executable, "-c", "from llmux.cli.main import main; main()", "doctor", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, **options)


def found(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    """The findings by what they are about."""
    document = json.loads(done.stdout)
    assert (done.returncode == 0) is document["ok"]
    return {one["what"]: one for topic in document["topics"] for one in topic["findings"]}


def written(directory: Path, **top: Any) -> str:
    model = {"model_path": "/dev/null", "eviction": "offload+keep_running"}
    file = directory / "llmux.json"
    config = {"vllm_command": SIMULATED_ENGINE, "port": 0, "metrics_port": 0, "models": {"m": model}, **top}
    file.write_text(json.dumps(config))
    return str(file)


def test_this_machine_by_itself() -> None:
    findings = found(doctor("--json"))
    assert findings["kernel"]["level"] == "ok"
    assert not [what for what, one in findings.items() if one["level"] in ("warning", "error") and not one["remedy"]]


def test_a_configuration_that_works_here(tmp_path: Path) -> None:
    findings = found(doctor("--json", "-c", written(tmp_path)))
    assert findings["file"]["level"] == "ok"
    assert not [one for one in findings.values() if one["level"] == "error"]


def test_people_see_lines_that_fit_and_remedies(tmp_path: Path) -> None:
    done = doctor("-c", written(tmp_path, vllm_command="/nowhere/vllm"), env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "configuration"
    assert "error" in lines[1] and "/nowhere/vllm" in lines[1]
    assert any("→ install it, or name another one" in line for line in lines)
    assert "1 error" in lines[-1]


def test_a_configuration_that_is_wrong_is_told_with_the_machine(tmp_path: Path) -> None:
    findings = found(doctor("--json", "-c", written(tmp_path, prot=3000)))
    assert findings["prot"]["level"] == "error" and "port" in findings["prot"]["remedy"]
    assert "kernel" in findings


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one = found(doctor("--json", "-c", written(tmp_path, port=port)))["port"]
    assert one["level"] == "error" and str(port) in one["found"]


def test_few_open_files(tmp_path: Path) -> None:
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))  # noqa: E731
    one = found(doctor("--json", preexec_fn=few))["open files"]
    assert one["level"] == "warning" and "256" in one["found"]


def test_an_old_criu_and_a_directory_that_others_can_write_to(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    images.chmod(0o777)
    checkpoint = {"criu_path": fake_criu.install(tmp_path), "images_dir": str(images)}
    model = {"model_path": "/dev/null", "eviction": "discard+checkpoint"}
    config = written(tmp_path, checkpoint=checkpoint, models={"m": model})
    findings = found(doctor("--json", "-c", config, env={**os.environ, "FAKE_CRIU_VERSION": "3.17"}))
    assert findings["criu"]["level"] == "error" and "3.17" in findings["criu"]["found"]
    assert findings[f"images_dir {images}"]["level"] == "error"


def test_a_directory_of_images_on_a_small_disk(tmp_path: Path) -> None:
    weights, images = tmp_path / "model", tmp_path / "images"
    weights.mkdir()
    images.mkdir()
    with (weights / "model.safetensors").open("wb") as file:
        file.truncate(64 << 20)
    model = {"model_path": str(weights), "eviction": "retain+checkpoint"}
    checkpoint = {"criu_path": fake_criu.install(tmp_path), "images_dir": str(images)}
    config = written(tmp_path, checkpoint=checkpoint, models={"m": model})
    # In a mount namespace of its own, which ends with the program.
    mount = f'mount -t tmpfs -o size=8m,mode=700 none {images} && exec "$@"'
    unshare = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-rm")
    findings = found(doctor("--json", "-c", config, prefix=(*unshare, "sh", "-c", mount, "sh")))
    one = findings[f"images_dir {images}"]
    assert one["level"] == "warning" and "the weights of the models with images take 0.1 GiB" in one["found"]


def test_a_program_that_hangs_ends_with_its_limit(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    model = {"engine": "llama_cpp", "command": str(program), "model_path": str(gguf)}
    findings = found(doctor("--json", "-c", written(tmp_path, models={"m": model})))
    assert findings["llama_cpp (m)"]["level"] == "unknown"


def test_without_rights_everything_else_is_still_looked_at() -> None:
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set=-all")
    prefix = (*nobody, "--no-new-privs") if os.geteuid() == 0 else ()
    with tempfile.TemporaryDirectory() as name:
        # One of pytest's would be closed to others.
        Path(name).chmod(0o755)
        criu = Path(name) / "criu"
        criu.write_text("#!/bin/sh\necho Version: 4.2.1\n")
        criu.chmod(0o755)
        environment = {"HOME": "/nonexistent", "PATH": f"{name}:{os.environ['PATH']}"}
        findings = found(doctor("--json", prefix=prefix, cwd="/", env=environment))
    assert "CAP_SYS_ADMIN" in findings["criu"]["found"]
    assert findings["cache_dir"]["level"] == "warning"
    assert findings["kernel"]["level"] == "ok"
