"""Reads the header of a GGUF file: what a llama.cpp model is and how much memory it will take, without loading it.

The layout is that of ggml's docs/gguf.md, versions 2 and 3, little-endian: counts, metadata, one entry per tensor, then
the tensors. The header of a real model is some MiB, nearly all of it the tokenizer, which is passed over. A file may
say anything, so each count is checked before it is believed, and at most ``HEADER_BYTES_MAX`` are gone through.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from llmux.errors import LlmuxError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_BYTES_MAX = 64 << 20
WINDOW_BYTES = 256 << 10
METADATA_MAX = 1024
TENSORS_MAX = 1 << 17
STRINGS_MAX = 1 << 21
"""In all arrays together: vocabularies have up to 260,000, and twice as many merges."""
KEY_BYTES_MAX = 1024
TEXT_BYTES_MAX = 4096
"""A longer string is passed over."""
LAYERS_MAX = 1024
"""A longer array of numbers is passed over: no property of layers."""
DIMENSIONS_MAX = 8
ALIGNMENT = 32
SPLITS_MAX = 1000
CONTEXT_MULTIPLE = 256
"""llama.cpp rounds the context of each sequence up to a multiple of it."""

SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)

_NUMBERS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
"""The types of a value in the metadata, but for the two that follow."""
_STRING, _ARRAY = 8, 9
_U64 = _NUMBERS[10]

_BLOCKS: Mapping[int, Mapping[int, int]] = {
    1: {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2},
    32: {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 9: 40, 20: 18, 39: 17},
    64: {40: 36},
    128: {41: 18},
    256: {
        **dict(zip(range(10, 20), (84, 110, 144, 176, 210, 292, 66, 74, 98, 50), strict=True)),
        **dict(zip((21, 22, 23, 29, 34, 35), (110, 82, 136, 56, 54, 66), strict=True)),
    },
}
"""Bytes per block of so many values, by ggml's number of the tensor's type."""
_TENSOR_TYPES = {kind: (values, size) for values, sizes in _BLOCKS.items() for kind, size in sizes.items()}

KV_TYPES: Mapping[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "iq4_nl": (32, 18),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
}
"""Values and bytes per block of the types that ``--cache-type-k`` and ``--cache-type-v`` may name."""

Value = int | float | bool | str | tuple[int | float | bool, ...]


class GgufUnreadable(LlmuxError):
    """A file that is no GGUF file, is damaged or incomplete, or of a version that is not read here."""

    def __init__(self, path: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the model file {path} cannot be used: {reason}")


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A model as its file describes it, or its files if it is split.

    Lengths are numbers of values, per head where they are a key's or a value's. Heads are given per layer.
    """

    architecture: str
    name: str
    files: tuple[Path, ...]
    weights_bytes: int
    """What the tensors take: llama-server logs the same as the sum of its model buffers, as long as it does not
    repack them for the processor."""
    layers: int
    embedding_length: int
    training_context: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    sliding_window: int | None
    metadata: Mapping[str, Value]
    """All that is neither the tokenizer's nor too long; of the first file."""

    @property
    def has_plain_attention(self) -> bool:
        """Whether every layer keeps all keys and values: then ``kv_bytes`` is what llama-server logs, to the byte.

        Else it is more than is needed: sliding windows keep only the latest tokens, multi-head latent attention
        keeps a compressed form, recurrent layers keep a state that does not grow, and encoders keep nothing.
        """
        unusual = ("attention.kv_lora_rank", "attention.key_length_mla", "ssm.state_size", "wkv.head_size")
        is_unusual = any(f"{self.architecture}.{key}" in self.metadata for key in unusual)
        is_encoder = self.metadata.get(f"{self.architecture}.attention.causal") is False
        return self.sliding_window is None and not is_unusual and not is_encoder

    def cells(self, context: int = 0, slots: int = 1, *, is_unified: bool = False) -> int:
        """For how many tokens llama-server allots memory with ``-c context -np slots`` and, or not, ``--kv-unified``.

        Unless unified, each slot gets its share of the context, rounded up. Without ``-np`` llama-server makes four
        slots with a unified cache. A context of 0 is that of the training.
        """
        total = _round_up(context or self.training_context, CONTEXT_MULTIPLE)
        return total if is_unified else slots * _round_up(total // slots, CONTEXT_MULTIPLE)

    def kv_bytes(self, cells: int, key_type: str = "f16", value_type: str = "f16") -> int:
        """The size of the KV cache for so many tokens. Raises ValueError for a type that llama-server has not."""
        return cells * (self._row_bytes(self.key_length, key_type) + self._row_bytes(self.value_length, value_type))

    def _row_bytes(self, length: int, kv_type: str) -> int:
        if kv_type not in KV_TYPES:
            raise ValueError(f"llama-server has no KV cache of the type {kv_type!r}")
        values, size = KV_TYPES[kv_type]
        return sum(-(-heads * length // values) * size for heads in self.kv_heads)


def read_model(path: Path) -> GgufModel:
    """Read a model's file, or all files of a split one by any of their names; raises GgufUnreadable."""
    paths = _files_of(path)
    first, *others = (_read_header(one) for one in paths)
    count = first.metadata.get("split.count", len(paths))
    if count not in (0, len(paths)):
        raise GgufUnreadable(
            path, f"it says that it is one of {count} files, and its name that it is one of {len(paths)}"
        )
    return _describe(path, paths, first.metadata, first.tensor_bytes + sum(other.tensor_bytes for other in others))


def _files_of(path: Path) -> tuple[Path, ...]:
    named = SPLIT_NAME.fullmatch(path.name)
    if named is None:
        return (path,)
    count = int(named["count"])
    if not 1 <= int(named["index"]) <= count <= SPLITS_MAX:
        raise GgufUnreadable(path, f"its name says that it is file {int(named['index'])} of {count}")
    return tuple(path.with_name(f"{named['stem']}-{index:05}-of-{count:05}.gguf") for index in range(1, count + 1))


def _describe(path: Path, paths: tuple[Path, ...], metadata: Mapping[str, Value], weights_bytes: int) -> GgufModel:
    facts = _Facts(path, metadata)
    layers = facts.number("block_count", most=LAYERS_MAX)
    heads = facts.per_layer("attention.head_count", layers, (0,) * layers)
    embedding_length = facts.number("embedding_length")
    per_head = embedding_length // max(1, *heads)
    return GgufModel(
        architecture=facts.architecture,
        name=str(metadata.get("general.name", "")),
        files=paths,
        weights_bytes=weights_bytes,
        layers=layers,
        embedding_length=embedding_length,
        training_context=facts.number("context_length"),
        heads=heads,
        kv_heads=facts.per_layer("attention.head_count_kv", layers, heads),
        key_length=facts.number("attention.key_length", per_head),
        value_length=facts.number("attention.value_length", per_head),
        sliding_window=facts.number("attention.sliding_window", 0) or None,
        metadata=metadata,
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    """Takes an architecture's own keys out of the metadata, where they have its name before them."""

    path: Path
    metadata: Mapping[str, Value]

    @property
    def architecture(self) -> str:
        found = self.metadata.get("general.architecture")
        if not isinstance(found, str) or not found:
            raise GgufUnreadable(self.path, "it does not say of what architecture it is")
        return found

    def number(self, key: str, default: int | None = None, *, most: int = 1 << 32) -> int:
        found = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= most:
            raise self._wrong(key, found)
        return found

    def per_layer(self, key: str, layers: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """One number per layer; the file has one for all, or an array."""
        found = self.metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(found, tuple):
            return (self.number(key),) * layers
        numbers = tuple(one for one in found if isinstance(one, int) and not isinstance(one, bool) and one >= 0)
        if len(numbers) != len(found) or len(found) < layers:
            raise self._wrong(key, found)
        return numbers[:layers]

    def _wrong(self, key: str, found: object) -> GgufUnreadable:
        state = "is missing" if found is None else f"cannot be {str(found)[:80]!r}"
        return GgufUnreadable(self.path, f"{self.architecture[:80]}.{key} {state}")


@dataclass(frozen=True, slots=True)
class _Header:
    metadata: Mapping[str, Value]
    tensor_bytes: int


def _read_header(path: Path) -> _Header:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return _parse(_Reader(path, file, min(size, HEADER_BYTES_MAX)), size)
    except OSError as error:
        raise GgufUnreadable(path, (error.strerror or str(error)).lower()) from error


def _parse(reader: "_Reader", file_bytes: int) -> _Header:
    if reader.take(4) != MAGIC:
        raise reader.damaged("it is not a GGUF file")
    version = reader.u32()
    if version not in VERSIONS:
        raise reader.damaged(f"its GGUF version is {version}, and 2 and 3 of little-endian files are read here")
    tensor_count, metadata_count = reader.u64(), reader.u64()
    if tensor_count > TENSORS_MAX or metadata_count > METADATA_MAX:
        raise reader.damaged(f"it claims {tensor_count} tensors and {metadata_count} pieces of metadata")
    metadata = dict(_read_metadata(reader, metadata_count))
    tensors = [_read_tensor(reader) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise reader.damaged(f"its alignment cannot be {str(alignment)[:80]!r}")
    room = file_bytes - _round_up(reader.position, alignment)
    if any(tensor.offset + tensor.size_bytes > room for tensor in tensors):
        raise reader.damaged("its tensors lie beyond its end: the file is incomplete")
    return _Header(metadata, sum(tensor.size_bytes for tensor in tensors))


def _read_metadata(reader: "_Reader", count: int) -> Iterator[tuple[str, Value]]:
    for _ in range(count):
        key = reader.text(KEY_BYTES_MAX)
        if key is None:
            raise reader.damaged("the name of a piece of its metadata is too long")
        value = _read_value(reader, reader.u32(), is_wanted=not key.startswith("tokenizer."))
        if value is not None:
            yield key, value


def _read_value(reader: "_Reader", kind: int, *, is_wanted: bool) -> Value | None:
    """The value, or None if it is passed over."""
    if kind == _STRING:
        return reader.text(TEXT_BYTES_MAX if is_wanted else 0)
    if kind == _ARRAY:
        return _read_array(reader, is_wanted=is_wanted)
    if kind not in _NUMBERS:
        raise reader.damaged(f"its metadata has a value of the unknown type {kind}")
    return reader.number(_NUMBERS[kind])


def _read_array(reader: "_Reader", *, is_wanted: bool) -> Value | None:
    kind, length = reader.u32(), reader.u64()
    if kind == _STRING:
        reader.skip_strings(length)
        return None
    if kind not in _NUMBERS:
        raise reader.damaged(f"its metadata has an array of the unknown type {kind}")
    number = _NUMBERS[kind]
    if not is_wanted or length > LAYERS_MAX:
        reader.skip(number.size * length)
        return None
    return tuple(reader.number(number) for _ in range(length))


@dataclass(frozen=True, slots=True)
class _Tensor:
    offset: int
    size_bytes: int


def _read_tensor(reader: "_Reader") -> _Tensor:
    reader.text(0)  # its name
    dimensions = reader.u32()
    if dimensions > DIMENSIONS_MAX:
        raise reader.damaged(f"it claims a tensor of {dimensions} dimensions")
    values = 1
    for _ in range(dimensions):
        values *= reader.u64()
    kind, offset = reader.u32(), reader.u64()
    if kind not in _TENSOR_TYPES:
        raise reader.damaged(f"it has a tensor of the type {kind}, whose size is not known here")
    per_block, block_bytes = _TENSOR_TYPES[kind]
    return _Tensor(offset, -(-values // per_block) * block_bytes)


class _Reader:
    """A file's header, read or passed over up to a limit, of which only a window is in memory.

    Not mapped into memory: a file that is made shorter meanwhile would end the process.
    """

    def __init__(self, path: Path, file: BufferedReader, limit: int) -> None:
        self.position = 0
        self._path = path
        self._file = file
        self._limit = limit
        self._strings_left = STRINGS_MAX
        self._window = b""
        self._window_begins = 0

    def damaged(self, reason: str) -> GgufUnreadable:
        return GgufUnreadable(self._path, reason)

    def check(self, count: int) -> None:
        """Raise GgufUnreadable unless so many bytes are left."""
        if count > self._limit - self.position:
            at_most = f" within its first {HEADER_BYTES_MAX >> 20} MiB" if self._limit == HEADER_BYTES_MAX else ""
            raise self.damaged(f"its header does not end{at_most}: it is damaged or incomplete")

    def take(self, count: int) -> bytes:
        begin = self._find(count)
        self.position += count
        return self._window[begin : begin + count]

    def skip(self, count: int) -> None:
        self.check(count)
        self.position += count

    def skip_strings(self, count: int) -> None:
        self._strings_left -= count
        if self._strings_left < 0:
            raise self.damaged(f"its metadata claims more than {STRINGS_MAX} strings")
        for _ in range(count):
            begin = self._find(8)
            self.position += 8 + _U64.unpack_from(self._window, begin)[0]
        self.check(0)

    def _find(self, count: int) -> int:
        """Where the next bytes are in the window, so many of them at least."""
        begin = self.position - self._window_begins
        if begin <= len(self._window) - count:
            return begin
        self.check(count)
        self._file.seek(self.position)
        self._window = self._file.read(max(count, WINDOW_BYTES))
        self._window_begins = self.position
        if len(self._window) < count:
            raise self.damaged("it became shorter while it was read")
        return 0

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def number(self, kind: struct.Struct) -> int | float | bool:
        found: int | float | bool = kind.unpack(self.take(kind.size))[0]
        return found

    def text(self, bytes_max: int) -> str | None:
        """A string, or None if it is longer than that and was passed over."""
        length = self.u64()
        if length > bytes_max:
            self.skip(length)
            return None
        return self.take(length).decode(errors="replace")


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
