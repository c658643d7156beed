"""Compression of an image's parts with Zstandard."""

LEVEL = 1
"""The fastest that is worth its while: higher levels take a multiple of the time for some per cent."""
LEAST_SAVING = 0.1
"""A part that gets no smaller than that is stored as it is, which spares those who read it the work."""


def compress(content: bytes | memoryview) -> bytes | None:
    """The content as a Zstandard frame; None if that saves less than a tenth."""
    import zstandard

    smaller = zstandard.ZstdCompressor(level=LEVEL).compress(content)
    return smaller if len(smaller) <= len(content) * (1 - LEAST_SAVING) else None


def decompress(frame: bytes | memoryview, limit_bytes: int) -> memoryview:
    """The content of a frame, which is at most ``limit_bytes`` long; raises ValueError."""
    import zstandard

    try:
        return memoryview(zstandard.ZstdDecompressor().decompress(frame, max_output_size=limit_bytes))
    except zstandard.ZstdError as error:
        raise ValueError(f"it cannot be decompressed: {error}") from None
