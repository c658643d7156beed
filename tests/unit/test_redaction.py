"""Secrets are taken out of text by their values, in the forms that programs print, and by their shapes."""

import json

import pytest

from llmux.redaction import Redactor, is_secret_name, secrets_in

SECRET = 'sesame-"7/\\é-open'


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "VLLM_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "API_KEYS",
        "db_password",
        "PGPASSWORD",
        "MYSQL_PWD",
        "OPENAI_APIKEY",
        "AZURE_CREDENTIALS",
        "KEY",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "PWD",
        "OLDPWD",
        "TOKENIZERS_PARALLELISM",
        "HF_TOKEN_PATH",
        "SSH_AUTH_SOCK",
        "KEYBOARD",
        "MAX_TOKENIZER",
        "HOME",
    ],
)
def test_other_names(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "printed",
    [
        SECRET,
        json.dumps({"key": SECRET}),
        json.dumps({"key": SECRET}, ensure_ascii=False),
        repr({"key": SECRET}),
        f"http://h/?k={'sesame-%227%2F%5C%C3%A9-open'}",
        f"a{SECRET}b{SECRET}c",
    ],
)
def test_a_known_secret_in_every_form(printed: str) -> None:
    redacted = Redactor([SECRET, "other-one"]).redact(printed)
    assert "***" in redacted
    assert "sesame" not in redacted
    assert "open" not in redacted


def test_the_longest_secret_is_taken_first() -> None:
    assert Redactor(["abcdef", "abcdefghi"]).redact("xabcdefghix") == "x***x"


def test_short_values_are_left_alone() -> None:
    text = "1 true false 12345"
    assert Redactor(["1", "true", "12345"]).redact(text) == text
    assert Redactor().redact(text) == text


def test_every_line_of_a_secret_is_one() -> None:
    redactor = Redactor(["-----BEGIN KEY-----\n  MIIEabcdefgh\n-----END KEY-----\n"])
    assert redactor.redact("    MIIEabcdefgh") == "    ***"
    assert "MIIE" not in redactor.redact(json.dumps("-----BEGIN KEY-----\n  MIIEabcdefgh\n-----END KEY-----\n"))


def test_secrets_by_their_variables() -> None:
    assert list(secrets_in({"HF_TOKEN": "one", "PATH": "two", "API_KEY": "three"})) == ["one", "three"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("token hf_AbCdEfGhIj is bad", "token *** is bad"),
        ("key=sk-proj-AbC_123456", "key=***"),
        ("http://user:pass@host:80/x", "http://***@host:80/x"),
        ("HF_TOKEN=abcdefgh x", "HF_TOKEN=*** x"),
        (
            "non-default args: {'api_key': ['swordfish'], 'port': 1}",
            "non-default args: {'api_key': ['***'], 'port': 1}",
        ),
        ('{"api_key": "swordfish", "n": 1}', '{"api_key": "***", "n": 1}'),
        ("vllm serve m --api-key swordfish --port 1", "vllm serve m --api-key *** --port 1"),
    ],
)
def test_secrets_by_their_shapes(text: str, expected: str) -> None:
    assert Redactor().redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=16 TOKENS_PER_SECOND=3",
        "http://127.0.0.1:8000/v1/models?x=a@b",
        "the bearer of bad news",
        "INFO 11-27 21:00:00 [api_server.py:1] Started server process [42]",
        "{'max_num_batched_tokens': 8192, 'tokenizer': 'x/y'}",
        "task-force sk-1",
    ],
)
def test_usual_lines_stay_as_they_are(text: str) -> None:
    assert Redactor(["a-secret-of-the-user"]).redact_line(text) == text


@pytest.mark.parametrize("cut", range(1, 20))
def test_the_larger_part_of_a_secret_that_was_broken_over_two_lines(cut: int) -> None:
    secret = "abcdefghijklmnopqrst"
    redactor = Redactor([secret])
    first, second = redactor.redact_line(f"key {secret[:cut]}"), redactor.redact_line(f"   {secret[cut:]} end")
    assert first == ("key ***" if cut >= 10 else f"key {secret[:cut]}")
    assert second == ("*** end" if cut <= 10 else f"   {secret[cut:]} end")
