"""Writes GGUF files: small ones for tests, and those of which only the header is true."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

F32, Q4_0, Q8_0, Q4_K = 0, 2, 8, 12
ALIGNMENT = 32

Scalar = int | float | bool | str
Metadata = Mapping[str, Scalar | Sequence[int] | Sequence[str] | Sequence[float]]

LLAMA: Metadata = {
    "general.architecture": "llama",
    "general.name": "small",
    "llama.context_length": 4096,
    "llama.embedding_length": 256,
    "llama.block_count": 2,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "word"],
    "tokenizer.ggml.scores": [0.0, 0.0, -1.0],
    "tokenizer.ggml.token_type": [2, 3, 1],
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file. Without ``data`` it is zeros of ``size_bytes``."""

    name: str
    shape: tuple[int, ...]
    kind: int
    size_bytes: int
    data: bytes = b""


def f32(name: str, shape: tuple[int, ...], values: Sequence[float] = ()) -> Tensor:
    """A tensor of 32-bit numbers; the first dimension is the one whose values are neighbours."""
    count = 1
    for length in shape:
        count *= length
    return Tensor(name, shape, F32, 4 * count, struct.pack(f"<{len(values)}f", *values))


def header(metadata: Metadata, tensors: Sequence[Tensor] = (), version: int = 3) -> bytes:
    """All of a file that comes before its tensors, but for the filling between."""
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    parts += [text(key) + _typed(value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        parts += [text(tensor.name), shape, struct.pack("<IQ", tensor.kind, offset)]
        offset += tensor.size_bytes + -tensor.size_bytes % ALIGNMENT
    return b"".join(parts)


def write(path: Path, metadata: Metadata = LLAMA, tensors: Sequence[Tensor] = ()) -> Path:
    """A whole file."""
    head = header(metadata, tensors)
    body = b"".join(one.data.ljust(one.size_bytes + -one.size_bytes % ALIGNMENT, b"\0") for one in tensors)
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + body)
    return path


def text(words: str) -> bytes:
    """A string as such a file has it."""
    data = words.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value) if value < 1 << 32 else struct.pack("<IQ", 10, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + text(value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(str(one)) for one in value)
        case [float(), *_]:
            return struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)
        case [*numbers]:
            return struct.pack(f"<IIQ{len(numbers)}i", 9, 5, len(numbers), *numbers)
        case _:
            raise TypeError(value)
