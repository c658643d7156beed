"""What the process sets up before anything else."""

from llmux.cli.process import HARMLESS
from llmux.server.signals import REMARKS


def test_a_server_that_starts_survives_what_a_running_one_remarks_on() -> None:
    assert set(HARMLESS) == set(REMARKS)
