"""Values are taken as they are meant, not as they could be converted."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from llmux.config import fields


@pytest.mark.parametrize(
    ("value", "text"), [("x", "x"), (4096, "4096"), (0.9, "0.9"), (fields.WrittenFloat("1.10"), "1.10")]
)
def test_words_may_be_written_as_numbers(value: object, text: str) -> None:
    assert TypeAdapter(fields.Word).validate_python(value) == text


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        pytest.param(fields.Word, True, id="word-true"),
        pytest.param(fields.Word, None, id="word-null"),
        pytest.param(fields.Word, "a\0b", id="word-nul"),
        pytest.param(fields.Flag, "true", id="flag-text"),
        pytest.param(fields.Flag, 1, id="flag-number"),
        pytest.param(fields.Port, "3000", id="port-text"),
        pytest.param(fields.Port, True, id="port-true"),
        pytest.param(fields.Port, 65536, id="port-high"),
        pytest.param(fields.Port, -1, id="port-negative"),
        pytest.param(fields.EnginePort, 0, id="engine-port-0"),
        pytest.param(fields.Seconds, -0.1, id="seconds-negative"),
        pytest.param(fields.Seconds, float("nan"), id="seconds-nan"),
        pytest.param(fields.Seconds, float("inf"), id="seconds-infinite"),
        pytest.param(fields.PositiveSeconds, 0, id="positive-seconds-0"),
        pytest.param(fields.Count, 0, id="count-0"),
        pytest.param(fields.Count, 1.0, id="count-float"),
        pytest.param(fields.Text, "", id="text-empty"),
        pytest.param(fields.Secret, "", id="secret-empty"),
        pytest.param(fields.Secret, " ", id="secret-blank"),
        pytest.param(fields.Secret, "a ", id="secret-blank-at-its-end"),
        pytest.param(fields.Secret, "\ta", id="secret-tab-at-its-beginning"),
        pytest.param(fields.Secret, "a\nb", id="secret-line-break"),
        pytest.param(fields.Secret, "a\0b", id="secret-nul"),
        pytest.param(fields.Text, "a\0b", id="text-nul"),
        pytest.param(fields.PathText, "a\0b", id="path-nul"),
        pytest.param(fields.Directory, "a\0b", id="directory-nul"),
        pytest.param(fields.Directory, "", id="directory-empty"),
        pytest.param(fields.VariableName, "A=B", id="variable-equals"),
    ],
)
def test_wrong_values_are_refused(kind: Any, value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(value)


def test_right_values() -> None:
    assert TypeAdapter(fields.Seconds).validate_python(0) == 0.0
    assert TypeAdapter(fields.Port).validate_python(0) == 0
    assert TypeAdapter(fields.Directory).validate_python("/x") == Path("/x")


def test_a_secret_does_not_show_itself() -> None:
    assert "hush" not in repr(TypeAdapter(fields.Secret).validate_python("hush"))
