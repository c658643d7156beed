"""Writing in a thread: order, what is dropped and said, and outputs that fail or take nothing."""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llmux.observability.background import BackgroundStream, BackgroundWriter, log_lines_dropped, stderr_in_background
from tests.support.processes import wait_until


class Output:
    """What was written, and a gate at which writing can be stopped."""

    def __init__(self) -> None:
        self.written = b""
        self.gate = threading.Event()
        self.gate.set()
        self.blocked = threading.Event()
        self.broken = False

    def write(self, data: bytes) -> int:
        if not self.gate.is_set():
            self.blocked.set()
            assert self.gate.wait(10)
        if self.broken:
            self.written += data[:3]
            return 3
        self.written += data
        return len(data)


def writer_to(output: Output, **options: int) -> BackgroundWriter:
    return BackgroundWriter("test", output.write, lambda lines: b"%d dropped\n" % lines, **options)


@contextmanager
def unread_pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def test_lines_are_written_in_order() -> None:
    output = Output()
    writer = writer_to(output)
    for number in range(100):
        writer.add(b"%d\n" % number)
    assert writer.close()
    assert output.written == b"".join(b"%d\n" % number for number in range(100))
    assert writer.lines_dropped == 0


def test_a_writer_that_was_given_nothing_needs_no_thread() -> None:
    before = threading.active_count()
    assert writer_to(Output()).close()
    assert threading.active_count() == before


def test_lines_that_find_the_queue_full_are_dropped_and_said_once_it_flows_again() -> None:
    output = Output()
    writer = writer_to(output, queue_bytes_max=20)
    output.gate.clear()
    writer.add(b"first\n")
    assert output.blocked.wait(10)
    for number in range(10):
        writer.add(b"line %d\n" % number)
    assert writer.lines_dropped == 8
    output.gate.set()
    wait_until(lambda: b"dropped" in output.written, "the notice")
    writer.add(b"last\n")
    assert writer.close()
    assert output.written == b"first\nline 0\nline 1\n8 dropped\nlast\n"
    assert writer.lines_dropped == 8


def test_a_line_after_a_dropped_one_is_dropped_too_until_the_queue_was_taken() -> None:
    """Otherwise a slow reader would see a notice between any two lines."""
    output = Output()
    writer = writer_to(output, queue_bytes_max=20)
    output.gate.clear()
    writer.add(b"first\n")
    assert output.blocked.wait(10)
    writer.add(b"a line of ten\n")
    writer.add(b"another long one\n")
    writer.add(b"x\n")
    output.gate.set()
    assert writer.close()
    assert output.written == b"first\na line of ten\n2 dropped\n"


def test_lines_that_could_not_be_written_are_dropped_and_said_later() -> None:
    output = Output()
    writer = writer_to(output)
    output.broken = True
    writer.add(b"a\nb\nc\n")
    wait_until(lambda: writer.lines_dropped == 2, "the failure")
    output.broken = False
    writer.add(b"d\n")
    assert writer.close()
    assert output.written == b"a\nb" + b"d\n" + b"2 dropped\n"


def test_what_the_caller_drops_is_said_without_another_line() -> None:
    output = Output()
    writer = writer_to(output)
    writer.drop(3)
    wait_until(lambda: output.written == b"3 dropped\n", "the notice")
    assert writer.close()


def test_a_broken_output_ends_with_the_writer() -> None:
    output = Output()
    writer = writer_to(output)
    output.broken = True
    writer.add(b"a\nb\nc\n")
    assert writer.close()


def test_closing_does_not_wait_for_a_write_that_hangs() -> None:
    output = Output()
    writer = writer_to(output)
    output.gate.clear()
    writer.add(b"line\n")
    assert output.blocked.wait(10)
    assert not writer.close(limit_seconds=0.01)
    output.gate.set()


def test_a_stream_over_a_pipe_that_nobody_reads_takes_everything_at_once() -> None:
    with unread_pipe() as (reader, descriptor):
        stream = BackgroundStream(descriptor)
        for _ in range(3000):
            stream.write("x" * 999 + "\n")
        assert 0 < stream.writer.lines_dropped < 3000
        received, said = b"", 0
        while received.count(b"x\n") + said < 3000:
            received += os.read(reader, 1 << 20)
            said = sum(map(int, re.findall(rb"(\d+) log lines? (?:was|were) dropped", received)))
        assert said == stream.writer.lines_dropped
        assert received.count(b"x" * 999 + b"\n") == 3000 - said
        stream.finish()


def test_a_stream_writes_whole_lines_and_the_rest_at_its_end() -> None:
    with unread_pipe() as (reader, descriptor):
        stream = BackgroundStream(descriptor)
        stream.write("one ")
        stream.write("line\nand \udc80")
        stream.finish()
        assert os.read(reader, 1000) == b"one line\nand \\udc80\n"


def test_a_non_blocking_pipe_is_waited_for() -> None:
    with unread_pipe() as (reader, descriptor):
        os.set_blocking(descriptor, False)
        stream = BackgroundStream(descriptor)
        text = "x" * 99 + "\n"
        stream.write(text * 2000)
        received = b""
        while len(received) < 200_000:
            received += os.read(reader, 1 << 16)
        stream.finish()
        assert stream.writer.lines_dropped == 0


def test_a_pipe_without_a_reader_is_no_error() -> None:
    reader, descriptor = os.pipe()
    os.close(reader)
    stream = BackgroundStream(descriptor)
    stream.write("a\nb\n")
    wait_until(lambda: stream.writer.lines_dropped == 2, "the failure")
    stream.finish()
    os.close(descriptor)


def test_standard_error_is_put_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stderr
    with stderr_in_background():
        assert sys.stderr is not before
        sys.stderr.write("hello\n")
    assert sys.stderr is before
    assert capfd.readouterr().err == "hello\n"
    assert log_lines_dropped() == 0
