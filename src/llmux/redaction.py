"""Takes secrets out of text that others may read: an engine's output, and messages about the configuration.

Secrets are known by their values (configured keys, variables whose names say that they are secret) and by their shapes
(``Bearer …``, ``hf_…``, the password in a URL).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

REDACTED = "***"
LENGTH_MIN = 6
"""A shorter value is not looked for: taking every "1" or "true" out of a text would make it useless."""

_INDENTATION_MAX = 80

_SECRET_WORD = re.compile(
    r"(?:^|_)(?:KEYS?|AUTH|PASS)(?:_|$)|_PWD(?:_|$)"
    r"|(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|ACCESSKEY|PRIVATEKEY)S?(?:_|$)",
    re.IGNORECASE,
)
_HARMLESS_END = re.compile(r"_(?:PATH|FILE|DIR|HOME|ID|NAME|SOCK)$", re.IGNORECASE)

_WORDS = ("key", "token", "secret", "passw", "passphrase")
_SHAPES = (
    (("://",), re.compile(r"(?<=://)[^\s/@'\"]{1,512}@"), f"{REDACTED}@"),
    (
        ("bearer", "basic"),
        re.compile(r"\b(Bearer|Basic)(\s+)(?=[^\s'\"]{6})[A-Za-z0-9._~+/=-]+", re.IGNORECASE),
        rf"\1\2{REDACTED}",
    ),
    (
        ("hf_", "sk-", "gh", "xox", "glpat-", "akia"),
        re.compile(r"\b(?:hf_|sk-|gh[op]_|github_pat_|xox[abp]-|glpat-|AKIA)[A-Za-z0-9_-]{6,}"),
        REDACTED,
    ),
    # A variable: HF_TOKEN=x.
    (
        _WORDS,
        re.compile(
            r"((?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_KEY|PRIVATE_KEY)(?:_[A-Z0-9_]{0,64})?=)"
            r"['\"]?[^\s'\",;]+"
        ),
        rf"\1{REDACTED}",
    ),
    # An object's field: 'api_key': ['x'].
    (
        _WORDS,
        re.compile(
            r"((?:(?i:api[_-]?key|(?:hf|hub|auth|access|api|refresh)_token|secret|secret_key|password|passphrase)"
            r"|_(?:TOKEN|KEY))['\"]?\s{0,4}[:=]\s{0,4}\[?\s{0,4}['\"])[^'\"]+"
        ),
        rf"\1{REDACTED}",
    ),
    # An argument: --api-key x.
    (
        _WORDS,
        re.compile(r"(--[a-z-]{0,32}(?:api-key|token|password|secret)[= ]\s{0,4})['\"]?[^\s'\",]+"),
        rf"\1{REDACTED}",
    ),
)
"""Words in lower case, of which every text that matches has one; the expression; what replaces the match."""


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret: ``HF_TOKEN``, ``AWS_SECRET_ACCESS_KEY``."""
    return _SECRET_WORD.search(name) is not None and _HARMLESS_END.search(name) is None


def secrets_in(environment: Mapping[str, str]) -> Iterator[str]:
    """The values of the variables whose names say that they are secret."""
    return (value for name, value in environment.items() if is_secret_name(name))


class Redactor:
    """Replaces secrets by ``***``, in time linear in the length of the text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        secrets = set(secrets)
        self._lines = sorted({line for secret in secrets for line in _lines(secret)}, key=len, reverse=True)
        forms = {form for secret in secrets for form in _forms(secret)}
        # The longest first: a secret may contain another one.
        self._forms = sorted(forms, key=len, reverse=True)

    def redact(self, text: str) -> str:
        """The text without secrets."""
        for form in self._forms:
            # Not one regular expression of all, which would try each of them at each character.
            if form in text:
                text = text.replace(form, REDACTED)
        lowered = text.lower()
        for words, shape, replacement in _SHAPES:
            if any(word in lowered for word in words):
                text = shape.sub(replacement, text)
        return text

    def redact_line(self, line: str) -> str:
        """A line without secrets, and without the larger part of one that was broken over two lines."""
        line = self.redact(line)
        for secret in self._lines:
            shortest = max(LENGTH_MIN, len(secret) // 2)
            begin = line.find(secret[:shortest], max(0, len(line) - len(secret)))
            if begin >= 0 and secret.startswith(line[begin:]):
                line = line[:begin] + REDACTED
            end = line.find(secret[-shortest:], 0, len(secret) + _INDENTATION_MAX)
            if end >= 0 and (part := line[: end + shortest].lstrip()) and secret.endswith(part):
                line = REDACTED + line[end + shortest :]
        return line


def _forms(secret: str) -> Iterator[str]:
    """How a program may print the secret: each of its lines for itself, since output is read by lines."""
    for text in _lines(secret):
        yield from (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1])
        yield quote(text, safe="")
    if "\n" in secret:
        yield from (json.dumps(secret)[1:-1], repr(secret)[1:-1])


def _lines(secret: str) -> Iterator[str]:
    return (line.strip() for line in secret.splitlines() if len(line.strip()) >= LENGTH_MIN)
