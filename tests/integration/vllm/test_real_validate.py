"""``llmux validate`` over the real vLLM, and over the real criu where images are made."""

from pathlib import Path

import pytest

from tests.support.command import run_llmux, write_config
from tests.support.real_criu import CRIU, nothing_left
from tests.support.real_criu import SKIP_REASON as NO_CRIU
from tests.support.real_vllm import MISSING, SKIP_REASON, real_config, real_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.criu,
    pytest.mark.skipif(bool(MISSING), reason=SKIP_REASON),
    pytest.mark.skipif(not CRIU, reason=NO_CRIU),
    pytest.mark.timeout(300),
]

POLICIES = ("offload+keep_running", "discard+keep_running", "retain+checkpoint", "retain+stop")


async def test_every_way_of_leaving_passes(tmp_path: Path) -> None:
    checkpoint = {"criu_path": CRIU, "images_dir": str(tmp_path / "images")}
    # Started as vLLM itself does it: its image is compared with that.
    model = real_model("a", "offload+keep_running", env={"VLLM_CPU_FORK": "0"})
    write_config(tmp_path, real_config({"a": model}, checkpoint=checkpoint))
    with nothing_left():
        ended = await run_llmux(
            "validate", "a", "--policies", ",".join(POLICIES), "--json", directory=tmp_path, limit_seconds=240
        )
    assert ended.code == 0, ended
    rows = ended.document["policies"]
    assert tuple(row["policy"] for row in rows) == POLICIES
    assert all(row["passed"] and row["same_answer"] for row in rows)
    assert ended.document["baseline"]
    offload, discard, checkpointed, stopped = (row["host_mib"] for row in rows)
    # 64 MiB of KV cache go at once, the weights only where they are discarded.
    assert offload["before"] - offload["asleep"] >= 48
    assert discard["asleep"] < discard["before"] - 48
    assert checkpointed["asleep"] == stopped["asleep"] == 0
    assert rows[2]["wake_seconds"] * 3 < rows[3]["wake_seconds"], "from its image it comes much faster than cold"
