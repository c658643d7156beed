"""What is read in a GGUF file, next to what the real llama-server logs when it has loaded it."""

import re
from pathlib import Path

import pytest

from llmux.engines.gguf import read_model
from tests.support.real_llama import MISSING, SKIP_REASON, model_path, running

pytestmark = [pytest.mark.llama, pytest.mark.anyio, pytest.mark.skipif(bool(MISSING), reason=SKIP_REASON)]

MIB = 1 << 20


@pytest.mark.parametrize(
    ("context", "slots", "is_unified", "key_type", "value_type"),
    [
        (0, 1, False, "f16", "f16"),
        (1000, 1, False, "f16", "f16"),
        (1000, 3, False, "f16", "f16"),
        (1000, 3, True, "f16", "f16"),
        (20_000, 1, False, "f16", "f16"),
        (2048, 2, False, "q8_0", "q8_0"),
        (2048, 1, False, "f32", "bf16"),
        (2048, 1, False, "q4_0", "q5_1"),
        (2048, 1, False, "iq4_nl", "q4_1"),
        (2048, 1, False, "q5_0", "f16"),
    ],
)
async def test_the_memory_is_what_the_server_logs(
    tmp_path: Path, context: int, slots: int, is_unified: bool, key_type: str, value_type: str
) -> None:
    model = read_model(model_path("slow"))
    arguments = ["-lv", "4", "-c", str(context), "-np", str(slots), "-ctk", key_type, "-ctv", value_type]
    async with running(model_path("slow"), *arguments, *["-kvu"][:is_unified], directory=tmp_path) as server:
        log = server.log.read_text(errors="replace")
    buffers = re.findall(r"load_tensors: .*model buffer size = +([\d.]+) MiB", log)
    assert f"{model.weights_bytes / MIB:.2f}" == f"{sum(map(float, buffers)):.2f}"
    logged = re.findall(r"llama_kv_cache: size = +([\d.]+) MiB", log)
    assert logged, log[-4000:]
    expected = model.kv_bytes(model.cells(context, slots, is_unified=is_unified), key_type, value_type)
    assert f"{expected / MIB:.2f}" == logged[-1]


async def test_what_the_file_says_is_what_the_server_says(tmp_path: Path) -> None:
    model = read_model(model_path("slow"))
    async with running(model_path("slow"), "-lv", "4", "-c", "512", "-np", "1", directory=tmp_path) as server:
        log = server.log.read_text(errors="replace")
    said = dict(re.findall(r"print_info: (\w+) += (\w+)", log))
    assert said["arch"] == model.architecture
    assert [int(said[key]) for key in ("n_layer", "n_head", "n_head_kv")] == [
        model.layers,
        model.heads[0],
        model.kv_heads[0],
    ]
    assert [int(said[key]) for key in ("n_embd_head_k", "n_embd_head_v")] == [model.key_length, model.value_length]
    assert int(said["n_ctx_train"]) == model.training_context
