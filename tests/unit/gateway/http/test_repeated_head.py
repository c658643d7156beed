"""Recognising heads that differ in their Content-Length only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.gateway.http import repeated_head
from llmux.gateway.http.repeated_head import RepeatedHead

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\nX: y\r\n\r\n"
LENGTH_LAST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n"


def length_of(repeated: RepeatedHead, head: bytes) -> int:
    return repeated.length_of(head.removesuffix(b"\r\n\r\n"))


def remembering(head: bytes) -> RepeatedHead:
    repeated = RepeatedHead()
    repeated.remember(head[:-4])
    return repeated


@given(st.integers(min_value=0, max_value=10**15 - 1), st.integers(min_value=0, max_value=10**15 - 1))
def test_a_head_with_other_digits_is_a_repetition(first: int, second: int) -> None:
    for head in (HEAD, LENGTH_LAST):
        assert length_of(remembering(head % b"%d" % first), head % b"%d" % second) == second


@pytest.mark.parametrize(
    "head",
    [
        *(HEAD % length for length in (b"", b"-1", b"+1", b"1 ", b" 1", b"1,1", b"0x1", b"1" * 16)),
        (HEAD % b"1").replace(b"Host", b"host"),
        (HEAD % b"1").replace(b"X: y", b"X: z"),
        HEAD % b"1" + b"more",
        (HEAD % b"1")[:-2],
        b"",
    ],
)
def test_anything_else_is_not(head: bytes) -> None:
    assert length_of(remembering(HEAD % b"1"), head) == -1


def test_nothing_matches_before_a_head_is_remembered_or_after_it_is_forgotten() -> None:
    assert length_of(RepeatedHead(), HEAD % b"1") == -1
    repeated = remembering(HEAD % b"1")
    repeated.forget()
    assert length_of(repeated, HEAD % b"1") == -1


def test_a_length_followed_by_blanks_is_not_remembered() -> None:
    repeated = remembering(HEAD % b"1")
    repeated.remember((HEAD % b"1 ")[:-4])
    assert length_of(repeated, HEAD % b"1") == -1


def test_lengths_are_remembered_up_to_a_bound_and_read_beyond_it() -> None:
    repeated = remembering(HEAD % b"1")
    for length in (*range(10_000), *range(10_000)):
        assert length_of(repeated, HEAD % b"%d" % length) == length
    assert len(repeated_head._cached_lengths) <= repeated_head._MAX_CACHED_LENGTHS


def test_leading_zeros_do_not_change_a_length() -> None:
    repeated = remembering(HEAD % b"1")
    assert length_of(repeated, HEAD % b"0012") == length_of(repeated, HEAD % b"12") == 12
