"""Deterministic answers that depend on model and prompt, so that an answer of the wrong model is detected."""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any

DEFAULT_CHAT_TOKENS = 32
"""Length of a chat answer without ``max_tokens``."""
GARBAGE = "!"
"""Every token while the weights are invalid: discarded and not reloaded."""
PROBE_ANSWER = "4"
"""The answer to a request with temperature 0.0 and a seed."""

_VOCABULARY = (
    "amber anchor apple arrow autumn basket beacon birch bridge bronze candle canyon cedar circle clover copper "
    "coral cotton crane crystal dawn delta desert ember falcon feather fern forest garden ginger granite harbor "
    "hazel hollow island ivory jasmine juniper lantern lemon linen maple marble meadow mirror moss north ocean "
    "olive orchard pebble pepper pine quartz raven ribbon river saddle silver spruce stone thistle velvet willow"
)
_WORDS = _VOCABULARY.split()


def tokens(model: str, prompt: str) -> Iterator[str]:
    """The endless answer of a model to a prompt, one token at a time."""
    seed = f"{model}\0{prompt}".encode()
    separator = ""
    for block in count():
        for byte in hashlib.blake2b(seed, salt=block.to_bytes(8, "little")).digest():
            yield separator + _WORDS[byte % len(_WORDS)]
            separator = " "


def expected_text(model: str, prompt: str, max_tokens: int = DEFAULT_CHAT_TOKENS) -> str:
    """What a healthy simulated engine answers; ``model`` is its first served name, ``prompt`` as of ``chat_prompt``."""
    return "".join(islice(tokens(model, prompt), max_tokens))


def chat_prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt of a list of chat messages: their texts, one a line."""
    return "\n".join(_content_text(message.get("content")) for message in messages)


def count_tokens(prompt: str) -> int:
    """A prompt's tokens: its words, at least one."""
    return max(1, len(prompt.split()))


def embedding(model: str, text: str) -> list[float]:
    """A vector of 16 numbers in [-1, 1), not normalised, that depends on model and text."""
    digest = hashlib.blake2b(f"{model}\0{text}".encode(), digest_size=16).digest()
    return [byte / 128.0 - 1.0 for byte in digest]


def image(model: str, prompt: str) -> bytes:
    """A PNG of one pixel, whose colour depends on model and prompt."""
    colour = hashlib.blake2b(f"{model}\0{prompt}".encode(), digest_size=3).digest()
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(b"\0" + colour), b"IEND")
    packed = (struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def transcript(model: str, audio: bytes) -> str:
    """What a model hears in some bytes."""
    return expected_text(model, hashlib.blake2b(audio).hexdigest(), 8)


def _content_text(content: object) -> str:
    match content:
        case None:
            return ""
        case str():
            return content
        case [*parts]:
            return " ".join(str(part.get("text", part.get("type"))) for part in parts if isinstance(part, Mapping))
        case _:
            return str(content)
