"""Command lines are taken apart and put together again, and a ``$`` stays what it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.config.expansion import expand
from llmux.config.migration import words
from llmux.config.settings import Settings

TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="".join(words.RESERVED_CHARACTERS)))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("a -b  c", ("a", "-b", "c")),
        ("a \\\n  -b \\\n  c", ("a", "-b", "c")),
        ("a\n# a comment\n  # -x\n-b", ("a", "-b")),
        ("a 'b c' \"d\\\"e\" ''", ("a", "b c", 'd"e', "")),
        ("a b#c #d", ("a", "b#c", "#d")),
        ("sh -c 'one\n  two'", ("sh", "-c", "one\n  two")),
        ("", ()),
    ],
)
def test_splitting(command: str, expected: tuple[str, ...]) -> None:
    assert words.split(command) == expected


@pytest.mark.parametrize("command", ["a 'b", 'a "b', "a \\\n'b"])
def test_a_quote_that_is_not_closed(command: str) -> None:
    with pytest.raises(ValueError, match="a quote is not closed"):
        words.split(command)


@given(st.lists(TEXTS, min_size=1))
def test_what_is_joined_is_split_into_the_same_words(items: list[str]) -> None:
    assert words.split(words.joined(items)) == tuple(items)


@given(TEXTS)
def test_llmux_reads_a_text_as_it_was(text: str) -> None:
    data = {"models": {"a": {"env": {"X": words.written(f"x{text}")}}}, "cors_origins": [words.written(text)]}
    expanded = expand(data, Settings, {})
    assert expanded.problems == []
    assert expanded.data["models"]["a"]["env"]["X"] == f"x{text}"
    assert expanded.data["cors_origins"] == [text]


def test_variables_and_the_port_are_written_in_llmux_words() -> None:
    text = f"$${words.variable('HOME')}/{words.PORT} ${{X:-y}} $HOME 5$"
    assert words.written(text) == "$$$$${HOME}/{port} $${X:-y} $$HOME 5$"
    assert words.shown(text) == "$$${env.HOME}/${PORT} ${X:-y} $HOME 5$"
    assert words.is_variable(words.variable("A"))
    assert not words.is_variable(f"{words.variable('A')}b")
