"""What the process sets up before anything else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmux.cli.process import HARMLESS
from llmux.server.signals import REMARKS


def test_a_server_that_starts_survives_what_a_running_one_remarks_on() -> None:
    assert set(HARMLESS) == set(REMARKS)


def test_a_server_does_without_the_imports_that_it_does_not_need_to_listen() -> None:
    script = (
        "import gc, sys\n"
        "from llmux.cli.process import hasten_imports\n"
        "hasten_imports()\n"
        "import llmux.cli.serve\n"
        "unneeded = {'rich', 'pygments', 'aiohttp', 'prometheus_client', 'llmux.checkpoints.dumping'}\n"
        "print(sorted(unneeded & set(sys.modules)), gc.isenabled())\n"
        "import rich.console\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "[] False\n", result.stderr
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("asks_for_plugins", [False, True])
def test_plugins_of_pydantic_are_imported_only_if_the_environment_says_so(
    tmp_path: Path, asks_for_plugins: bool
) -> None:
    (tmp_path / "noisy.py").write_text(
        "print('imported')\ndef new_schema_validator(*_, **__):\n    return None, None, None\n"
    )
    metadata = tmp_path / "noisy-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[pydantic]\nnoisy = noisy\n")
    script = (
        "import os\n"
        "from llmux.cli.process import hasten_imports\n"
        "before = dict(os.environ)\n"
        "hasten_imports()\n"
        "import llmux.cli.serve\n"
        "print(before == dict(os.environ))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYDANTIC_DISABLE_PLUGINS"}
    environment["PYTHONPATH"] = str(tmp_path)
    if asks_for_plugins:
        environment["PYDANTIC_DISABLE_PLUGINS"] = "another"
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.stdout.split() == (["imported"] if asks_for_plugins else []) + ["True"], result.stderr
