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

_SECRET_WORD = re.compile(
    r"(?:^|_)(?:KEYS?|AUTH|PASS)(?:_|$)|_PWD(?:_|$)"
    r"|(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|ACCESSKEY|PRIVATEKEY)S?(?:_|$)",
    re.IGNORECASE,
)
_HARMLESS_END = re.compile(r"_(?:PATH|FILE|DIR|HOME|ID|NAME|SOCK)$", re.IGNORECASE)

_SHAPES = (
    (re.compile(r"(?<=://)[^\s/@'\"]{1,512}@"), f"{REDACTED}@"),
    (re.compile(r"\b(Bearer|Basic)(\s+)(?=[^\s'\"]{6})[A-Za-z0-9._~+/=-]+", re.IGNORECASE), rf"\1\2{REDACTED}"),
    (re.compile(r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|xox[abp]-|glpat-|AKIA)[A-Za-z0-9_-]{6,}"), REDACTED),
    # Environments and arguments that are printed: HF_TOKEN=x, 'api_key': ['x'], --api-key x.
    (
        re.compile(
            r"(?<![A-Za-z0-9_])([A-Z0-9_]{0,64}(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_KEY|PRIVATE_KEY)"
            r"(?:_[A-Z0-9_]{0,64})?=)['\"]?[^\s'\",;]+"
        ),
        rf"\1{REDACTED}",
    ),
    (
        re.compile(
            r"(['\"]?(?:[a-z0-9_]{0,64}_)?(?:api[_-]?key|hf_token|auth_token|access_token|secret|secret_key|password)['\"]?"
            r"\s{0,4}[:=]\s{0,4}\[?\s{0,4}['\"])([^'\"]+)",
            re.IGNORECASE,
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(--[a-z-]{0,32}(?:api-key|token|password|secret)[= ]\s{0,4})['\"]?[^\s'\",]+"), rf"\1{REDACTED}"),
)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret: ``HF_TOKEN``, ``AWS_SECRET_ACCESS_KEY``."""
    return _SECRET_WORD.search(name) is not None and _HARMLESS_END.search(name) is None


def secrets_in(environment: Mapping[str, str]) -> Iterator[str]:
    """The values of the variables whose names say that they are secret."""
    return (value for name, value in environment.items() if is_secret_name(name))


class Redactor:
    """Replaces secrets by ``***``. Its work is linear in the length of the text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, forms))) if forms else None

    def redact(self, text: str) -> str:
        """The text without secrets."""
        if self._known is not None:
            text = self._known.sub(REDACTED, text)
        for shape, replacement in _SHAPES:
            text = shape.sub(replacement, text)
        return text


def _forms(secret: str) -> Iterator[str]:
    """How a program may print the secret: each of its lines for itself, since output is read by lines."""
    for line in secret.splitlines():
        text = line.strip()
        if len(text) >= LENGTH_MIN:
            yield from (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1])
            yield quote(text, safe="")
    if "\n" in secret:
        yield from (json.dumps(secret)[1:-1], repr(secret)[1:-1])
