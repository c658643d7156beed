"""Cleaning an engine's output, and keeping its last lines."""

import pytest

from llmux.instances.output import OutputTail, clean_line, shorten


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[1;32mok \x1b[0m", "ok "),
        ("a\x1b[Kb\x1b[2Jc", "abc"),
        ("cut off \x1b[38;5;1", "cut off "),
        ("windows\r", "windows"),
        (" 10%|#   |\r 50%|##  |\r100%|####|", "100%|####|"),
        ("\x1b[A\r 1%\r\x1b[32m 2%\r", " 2%"),
        ("", ""),
    ],
)
def test_clean_line(printed: str, shown: str) -> None:
    assert clean_line(printed) == shown


def test_tail_keeps_the_last_lines_that_say_something() -> None:
    tail = OutputTail(lines=3)
    health = 'INFO:     127.0.0.1:51234 - "GET /health HTTP/1.1" 200 OK'
    for line in ("one", "two", "", "   ", "three", health, "four", health):
        tail.add(line)
    assert tail.lines == ("two", "three", "four")


def test_tail_shortens_long_lines() -> None:
    tail = OutputTail()
    tail.add("x" * 5_000)
    assert tail.lines == ("x" * 2_000 + "… (3000 more characters)",)


def test_shorten_keeps_text_within_the_limit() -> None:
    assert shorten("abc", 3) == "abc"
