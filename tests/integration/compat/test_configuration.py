"""What 0.7.7's file says beside what is checked in tests/unit/config: as the whole program understands it."""

from pathlib import Path
from typing import Any

import pytest

from llmux.config.load import loads
from tests.support.bench import OFFLOAD, serving
from tests.support.server import SIMULATED_ENGINE, ended_early, simulated_config

ABSENT = (
    '{"models": {"a": {"model_path": "x", "port": 8001, "checkpoint_path": null}}, "admin_port": null, "checkpoint": '
)


@pytest.mark.parametrize("checkpoint", ["null", '{"object_store": null}'])
def test_null_means_absent(checkpoint: str) -> None:
    settings = loads(f"{ABSENT}{checkpoint}}}", environment={}).settings
    assert settings.admin_port is None
    assert settings.models["a"].checkpoint_path is None
    assert settings.checkpoint is None or settings.checkpoint.object_store is None


async def test_the_engines_command_is_one_program_and_never_split_into_words(tmp_path: Path) -> None:
    program = tmp_path / "an engine" / "of mine"
    program.parent.mkdir()
    program.symlink_to(SIMULATED_ENGINE)
    async with serving({"a": OFFLOAD}, tmp_path, vllm_command=str(program)) as bench:
        await bench.expect("a")


async def test_host_gives_the_old_address_back(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path, host="0.0.0.0") as bench:
        assert bench.server.find_in_log(r"listening .*host=0\.0\.0\.0")
        port = bench.server.url.rpartition(":")[2]
        assert (await bench.call(f"GET http://127.0.0.2:{port}/health")).status == 200, "an address of its own"


@pytest.mark.parametrize(
    ("checkpoint", "complaint"),
    [(None, "checkpoint"), ({}, "models.a.checkpoint_path")],
    ids=["without the section", "without the directory"],
)
async def test_an_image_that_cannot_be_there_ends_the_program(
    tmp_path: Path, checkpoint: dict[str, Any] | None, complaint: str
) -> None:
    models = {"a": {"checkpoint_path": str(tmp_path / "nothing")}}
    code, log = await ended_early(simulated_config(models, checkpoint=checkpoint), tmp_path)
    assert code == 1
    assert f"{complaint}: " in log
    assert "Traceback" not in log
