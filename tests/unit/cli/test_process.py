"""What the process sets up before anything else."""

import subprocess
import sys

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
