"""The chunked transfer coding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.gateway.http.chunks import ChunkReader, FramingError


def encode(pieces: list[bytes], size_line: bytes = b"%X\r\n") -> bytes:
    return b"".join(size_line % len(piece) + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(min_value=1, max_value=30), min_size=1, max_size=30),
    st.binary(max_size=10),
)
def test_content_and_end_do_not_depend_on_how_the_body_is_split(
    pieces: list[bytes], sizes: list[int], after: bytes
) -> None:
    message = encode(pieces) + after
    for collect in (True, False, False):
        reader = ChunkReader(collect=collect)
        position = turn = 0
        end = -1
        while end < 0:
            size = sizes[turn % len(sizes)]
            end = reader.feed(message[position : position + size])
            turn += 1
            position += size if end < 0 else end
        assert message[position:] == after
        if reader.payload is not None:
            assert reader.take_payload() == b"".join(pieces)


@pytest.mark.parametrize("size", [1, 9, 10, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097])
@pytest.mark.parametrize("size_line", [b"%x\r\n", b"%X\r\n", b"0%x\r\n", b"%x;extension\r\n"])
def test_a_read_of_exactly_one_chunk_is_handled_like_any_other(size: int, size_line: bytes) -> None:
    chunk = size_line % size + b"x" * size + b"\r\n"
    reader = ChunkReader()
    assert reader.feed(chunk) == -1
    assert reader.between_chunks
    assert reader.feed(chunk[:-1]) == -1
    assert not reader.between_chunks
    assert reader.feed(b"\n" + chunk * 3 + chunk[:-1]) == -1
    assert not reader.between_chunks
    assert reader.feed(b"\n" + chunk * 2 + b"0\r\n\r\n") == 6 + 2 * len(chunk)
    for wrong in (chunk[:-2] + b"xx", chunk[:-2] + b"\r\r", chunk[:-3] + b"\r\n\n"):
        for before in (b"", chunk):
            with pytest.raises(FramingError):
                ChunkReader().feed(before + wrong)


def feed_all(reader: ChunkReader, pieces: list[bytes]) -> None:
    for piece in pieces:
        reader.feed(piece)


def test_the_gap_between_two_chunks_is_recognised() -> None:
    reader = ChunkReader()
    assert reader.between_chunks
    for piece, between in [(b"5", False), (b"\r\nhello", False), (b"\r", False), (b"\n", True), (b"1\r\nx\r\n", True)]:
        assert reader.feed(piece) == -1
        assert reader.between_chunks is between


@pytest.mark.parametrize(
    "message",
    [
        b"+5\r\nhello\r\n",
        b"-5\r\n",
        b"0x5\r\nhello\r\n",
        b"5_0\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"\r\n",
        b"g\r\n",
        b"5\nhello\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhello\n",
        b"5\r\r\nhello\r\n",
        b"fffffffffffffffff\r\n",
        b"5;\x00\r\nhello\r\n",
        b"0\r\n folded\r\n\r\n",
        b"0\r\nnocolon\r\n\r\n",
        b"5;" + b"x" * 2000,
        b"0\r\n" + b"a: b\r\n" * 4000 + b"\r\n",
    ],
)
@pytest.mark.parametrize("split", [False, True])
def test_malformed(message: bytes, split: bool) -> None:
    reader = ChunkReader()
    pieces = [message[at : at + 1] for at in range(len(message))] if split else [message]
    with pytest.raises(FramingError):
        feed_all(reader, pieces)


def test_cached_sizes_are_validated_like_new_ones() -> None:
    for _ in range(3):
        assert ChunkReader().feed(b"a\r\n0123456789\r\n") == -1
        with pytest.raises(FramingError):
            ChunkReader().feed(b"a\r\n0123456789XX")


@pytest.mark.parametrize("byte", [0, 8, 11, 31, 127])
@pytest.mark.parametrize("place", [0, 900])
def test_a_control_character_in_an_extension_is_refused(byte: int, place: int) -> None:
    extension = bytearray(b"x" * 1000)
    ChunkReader().feed(b"1;" + extension + b"\r\n")
    extension[place] = byte
    with pytest.raises(FramingError, match="control character"):
        ChunkReader().feed(b"1;" + extension + b"\r\n")
