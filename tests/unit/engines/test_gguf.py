import struct
import tracemalloc
from pathlib import Path
from time import process_time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmux.engines import gguf
from llmux.engines.gguf import GgufUnreadable, read_model
from tests.support.gguf_files import LLAMA, Q4_0, Q4_K, Q8_0, Metadata, Tensor, f32, header, text, write

TENSORS = (
    f32("output_norm.weight", (256,)),
    Tensor("blk.0.attn_q.weight", (256, 256), Q8_0, 256 * 256 // 32 * 34),
    Tensor("blk.0.attn_k.weight", (256, 64), Q4_K, 256 * 64 // 256 * 144),
    Tensor("blk.0.attn_v.weight", (256, 64), Q4_0, 256 * 64 // 32 * 18),
)
WEIGHTS_BYTES = 1024 + 69632 + 9216 + 9216


def without(key: str) -> Metadata:
    return {name: value for name, value in LLAMA.items() if name != key}


def test_a_model_is_described(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", LLAMA, TENSORS)
    model = read_model(path)
    assert (model.architecture, model.name, model.files) == ("llama", "small", (path,))
    assert (model.layers, model.embedding_length, model.training_context) == (2, 256, 4096)
    assert (model.heads, model.kv_heads) == ((8, 8), (2, 2))
    assert (model.key_length, model.value_length) == (32, 32)
    assert model.weights_bytes == WEIGHTS_BYTES
    assert model.has_plain_attention
    assert "tokenizer.ggml.tokens" not in model.metadata


def test_version_2_is_read_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(LLAMA, version=2))
    assert read_model(path).layers == 2
    path.write_bytes(header(LLAMA, version=1))
    with pytest.raises(GgufUnreadable, match="its GGUF version is 1, and 2 and 3"):
        read_model(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(100))
    with pytest.raises(GgufUnreadable, match=r"version is 50331648.*little-endian"):
        read_model(path)


def test_lengths_that_the_file_gives_and_heads_per_layer(tmp_path: Path) -> None:
    metadata = {
        **LLAMA,
        "llama.attention.head_count_kv": [4, 0],
        "llama.attention.key_length": 64,
        "llama.attention.value_length": 128,
        "llama.attention.sliding_window": 1024,
    }
    model = read_model(write(tmp_path / "model.gguf", metadata))
    assert model.kv_heads == (4, 0)
    assert (model.key_length, model.value_length) == (64, 128)
    assert model.kv_bytes(1) == 4 * (64 + 128) * 2
    assert model.sliding_window == 1024 and not model.has_plain_attention


def test_the_kv_cache_by_its_types(tmp_path: Path) -> None:
    model = read_model(write(tmp_path / "model.gguf"))
    values = 2 * 2 * 32  # layers, heads, length
    assert model.kv_bytes(1000) == 1000 * values * (2 + 2)
    assert model.kv_bytes(1000, "f32", "bf16") == 1000 * values * (4 + 2)
    assert model.kv_bytes(1000, "q8_0", "q4_0") == 1000 * (values // 32) * (34 + 18)
    with pytest.raises(ValueError, match="no KV cache of the type 'q3_k'"):
        model.kv_bytes(1000, "q3_k")


@pytest.mark.parametrize(
    ("context", "slots", "is_unified", "cells"),
    [
        (0, 1, False, 4096),
        (1000, 1, False, 1024),
        (1000, 2, False, 1024),
        (1000, 3, False, 1536),
        (1000, 3, True, 1024),
        (20_000, 1, False, 20_224),
    ],
)
def test_each_slot_has_a_multiple_of_256_tokens(
    tmp_path: Path, context: int, slots: int, is_unified: bool, cells: int
) -> None:
    assert read_model(write(tmp_path / "model.gguf")).cells(context, slots, is_unified=is_unified) == cells


@pytest.mark.parametrize(
    "more",
    [{"llama.ssm.state_size": 16}, {"llama.attention.kv_lora_rank": 512}, {"llama.attention.causal": False}],
)
def test_models_that_keep_less_than_all_keys_and_values(tmp_path: Path, more: Metadata) -> None:
    assert not read_model(write(tmp_path / "model.gguf", {**LLAMA, **more})).has_plain_attention


def test_a_model_without_attention_has_no_kv_cache(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": "mamba",
        "mamba.context_length": 1024,
        "mamba.embedding_length": 64,
        "mamba.block_count": 2,
        "mamba.ssm.state_size": 16,
    }
    assert read_model(write(tmp_path / "model.gguf", metadata)).kv_bytes(1024) == 0


@pytest.mark.parametrize("named", [1, 2, 3])
def test_a_split_model_is_all_of_its_files(tmp_path: Path, named: int) -> None:
    first = write(tmp_path / "big-00001-of-00003.gguf", {**LLAMA, "split.count": 3}, TENSORS[:1])
    write(tmp_path / "big-00002-of-00003.gguf", {"split.no": 1, "split.count": 3}, TENSORS[1:3])
    write(tmp_path / "big-00003-of-00003.gguf", {"split.no": 2, "split.count": 3}, TENSORS[3:])
    model = read_model(tmp_path / f"big-0000{named}-of-00003.gguf")
    assert model.weights_bytes == WEIGHTS_BYTES
    assert model.files[0] == first and len(model.files) == 3


def test_a_split_model_of_which_a_file_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "big-00001-of-00002.gguf", {**LLAMA, "split.count": 2})
    with pytest.raises(GgufUnreadable, match=r"big-00002-of-00002\.gguf cannot be used: no such file"):
        read_model(tmp_path / "big-00001-of-00002.gguf")


def test_a_split_model_under_a_name_that_hides_its_other_files(tmp_path: Path) -> None:
    with pytest.raises(GgufUnreadable, match="it is one of 2 files, and its name that it is one of 1"):
        read_model(write(tmp_path / "model.gguf", {**LLAMA, "split.count": 2}))


@pytest.mark.parametrize("name", ["x-00003-of-00002.gguf", "x-00000-of-00002.gguf", "x-00001-of-99999.gguf"])
def test_impossible_names_of_split_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(GgufUnreadable, match="its name says that it is file"):
        read_model(write(tmp_path / name))


def damaged(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(GgufUnreadable) as caught:
        read_model(path)
    return caught.value.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its header does not end: it is damaged or incomplete"),
        (b"<html>not found</html>", "it is not a GGUF file"),
        (header(LLAMA, TENSORS), "its tensors lie beyond its end: the file is incomplete"),
        (header(LLAMA)[:-7], "its header does not end: it is damaged or incomplete"),
        (header(without("general.architecture")), "it does not say of what architecture it is"),
        (header(without("llama.block_count")), "llama.block_count is missing"),
        (header({**LLAMA, "llama.block_count": "2"}), "llama.block_count cannot be '2'"),
        (header({**LLAMA, "llama.block_count": 1 << 40}), "llama.block_count cannot be '1099511627776'"),
        (header({**LLAMA, "llama.attention.head_count_kv": [1]}), "llama.attention.head_count_kv cannot be '(1,)'"),
        (
            header({**LLAMA, "llama.attention.head_count_kv": [1, -1]}),
            "llama.attention.head_count_kv cannot be '(1, -1)'",
        ),
        (header({**LLAMA, "general.alignment": 0}), "its alignment cannot be '0'"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), f"it claims {1 << 60} tensors and 1 pieces of metadata"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), f"it claims 0 tensors and {1 << 60} pieces of metadata"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 99),
            "its metadata has a value of the unknown type 99",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1),
            "its metadata has an array of the unknown type 9",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 1 << 62),
            f"its metadata claims more than {gguf.STRINGS_MAX} strings",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 10, 1 << 62),
            "its header does not end: it is damaged or incomplete",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62),
            "its header does not end: it is damaged or incomplete",
        ),
        (
            header({**LLAMA, "z": ["word"]})[:-12] + struct.pack("<Q", 1 << 40) + b"word",
            "its header does not end: it is damaged or incomplete",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a" * 2000), "the name of a piece of its metadata is too long"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<I", 1 << 31),
            f"it claims a tensor of {1 << 31} dimensions",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<IIQ", 0, 77, 0),
            "it has a tensor of the type 77, whose size is not known here",
        ),
    ],
)
def test_damaged_files_are_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    assert damaged(tmp_path / "model.gguf", content) == reason


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(GgufUnreadable, match=r"nothing\.gguf cannot be used: no such file or directory"):
        read_model(tmp_path / "nothing.gguf")
    with pytest.raises(GgufUnreadable, match="is a directory"):
        read_model(tmp_path)


def test_no_more_than_the_limit_is_gone_through(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + text("a") + struct.pack("<IIQ", 9, 0, 1 << 40))
        file.truncate(1 << 41)
    with pytest.raises(GgufUnreadable, match="does not end within its first 64 MiB"):
        read_model(path)


def test_a_header_of_nothing_but_strings_is_refused_before_it_takes_long(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        array = struct.pack("<IIQ", 9, 8, 100_000)
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1000) + (text("a") + array + bytes(800_000)) * 30)
    began = process_time()
    with pytest.raises(GgufUnreadable, match="more than 2097152 strings"):
        read_model(path)
    assert process_time() - began < 20


def test_what_is_passed_over_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    scores = struct.pack("<IIQ", 9, 10, 4_000_000)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("tokenizer.ggml.scores") + scores + bytes(32_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(GgufUnreadable, match="of what architecture"):
            read_model(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


WHOLE = header(LLAMA, TENSORS[:1]) + bytes(2048)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, len(WHOLE)),
    length=st.integers(0, 64),
    filling=st.binary(max_size=64) | st.sampled_from([b"\xff" * 8, bytes(8), b"\xff" * 4 + bytes(4)]),
)
@example(start=8, length=8, filling=b"\xff" * 8)
def test_any_other_bytes_are_read_or_refused(tmp_path: Path, start: int, length: int, filling: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(WHOLE[:start] + filling + WHOLE[start + length :])
    began = process_time()
    try:
        model = read_model(path)
    except GgufUnreadable:
        pass
    else:
        assert model.kv_bytes(model.cells(512)) >= 0 and model.weights_bytes >= 0
    assert process_time() - began < 5


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_random_metadata_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 3) + content)
    with pytest.raises(GgufUnreadable):
        read_model(path)
