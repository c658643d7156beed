"""Whatever a value is, it reads back as the same, by a YAML parser and by llmux's own."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmux.config.migration import words
from llmux.config.migration.draft import FileDraft, ModelDraft, Note, Value
from llmux.config.migration.writing import COMMENT_WIDTH, render
from llmux.config.parse import parse

TEXTS = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters=f"$\x00{''.join(words.RESERVED_CHARACTERS)}")
)
WORDS = st.one_of(TEXTS, st.from_regex(r"--?[a-z]{1,12}", fullmatch=True), st.sampled_from(["on", "1e3", "1:30", "~"]))


def document(draft: FileDraft) -> object:
    text = render(draft, ["A header."])
    read = yaml.safe_load(text)
    assert parse(text, "x.yaml").data == read
    return read


def one_model(**keys: Value) -> FileDraft:
    return FileDraft(models={"a": ModelDraft(keys=keys)})


@settings(max_examples=50)
@given(TEXTS.filter(bool), st.lists(WORDS, max_size=30), st.dictionaries(st.sampled_from(["A", "B_2"]), TEXTS))
def test_values_read_back_as_they_were(text: str, items: list[str], env: dict[str, str]) -> None:
    keys: dict[str, Value] = {"engine": "command", "start_command": text, "extra_args": items, "port": 7}
    if env:
        keys["env"] = env
    assert document(one_model(**keys)) == {"models": {"a": keys}}


@pytest.mark.parametrize("name", ["yes", "3", "null", "a b", "a: b", "org/repo:Q4", "ü", "'", '"', "1.5", "x #y", "#"])
def test_names_read_back_as_they_were(name: str) -> None:
    draft = FileDraft(models={name: ModelDraft(keys={"engine": "vllm"})})
    assert document(draft) == {"models": {name: {"engine": "vllm"}}}


def test_a_long_command_is_folded_before_flags() -> None:
    command = " ".join(["serve", *(f"--flag-{number} 'a b'" for number in range(20))])
    draft = one_model(start_command=command)
    text = render(draft, [])
    assert document(draft) == {"models": {"a": {"start_command": command}}}
    assert "start_command: >-\n" in text
    assert max(map(len, text.splitlines())) <= COMMENT_WIDTH


def test_notes_that_say_the_same_are_one_comment_above_their_key() -> None:
    draft = one_model(extra_args=["-x"])
    model = draft.models["a"]
    model.note("extra_args", Note("--host", "llmux sets it itself", "0.0.0.0"))
    model.note("extra_args", Note("--port", "llmux sets it itself"))
    model.note("port", Note("proxy", "two\nlines"))
    model.note("", Note("ttl", "later:", suggested=("idle_seconds: 5",)))
    assert render(draft, ["Made by hand."]) == (
        "# Made by hand.\n\nmodels:\n  a:\n    # proxy: two lines\n"
        "    # --host (0.0.0.0), --port: llmux sets it itself\n    extra_args: [-x]\n"
        "    # ttl: later:\n    # idle_seconds: 5\n"
    )


def test_a_model_that_lacks_something_is_a_comment() -> None:
    draft = FileDraft(models={"a": ModelDraft(keys={"engine": "vllm"}, is_usable=False)})
    assert document(draft) == {"models": {}}
    assert "\n  # a:\n  #   engine: vllm\n" in render(draft, [])
