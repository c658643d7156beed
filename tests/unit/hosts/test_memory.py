import os
import subprocess
import sys
from pathlib import Path

from llmux.hosts import memory
from llmux.hosts.memory import MIB, available_mib, weights_mib


def test_weights_are_the_files_that_hold_them(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(bytes(2 * MIB))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(MIB))
    (tmp_path / "tokenizer.json").write_bytes(bytes(5 * MIB))
    assert weights_mib(str(tmp_path)) == 3


def test_a_model_of_a_hub_has_no_known_size(tmp_path: Path) -> None:
    assert weights_mib(str(tmp_path / "meta-llama" / "Llama-3.1-8B")) == 0


def test_some_memory_is_available() -> None:
    assert available_mib() > 0


def test_what_processes_hold_and_whether_they_live() -> None:
    script = "import sys; held = bytearray(b'x') * (64 << 20); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        found = [one for one in memory.find_descendants(os.getpid()) if one.pid == process.pid]
        assert 64 <= memory.held_mib(found) < 128
        assert memory.still_living(found) == [process.pid]
        process.kill()
        process.wait()
        assert memory.held_mib(found) == 0
        assert memory.still_living(found) == []


def test_nobody_is_below_what_does_not_exist() -> None:
    assert memory.find_descendants(4_194_304) == []
