"""Whether a request carries one of the configured keys, and of which class it is by its key and its header."""

from hmac import compare_digest
from typing import Final

from llmux.access import Priority
from llmux.errors import MalformedRequest
from llmux.gateway.request_head import RequestHead

# Looking up a member of an Enum costs more than the comparison it is for, and this is done for every request.
_USUAL: Final = Priority.INTERACTIVE


def is_authorized(head: RequestHead, keys: frozenset[str], batch_keys: frozenset[str] = frozenset()) -> bool:
    """Compares the key given with every key in constant time; no keys: anyone may."""
    if not keys and not batch_keys:
        return True
    return _is_one_of(_given(head), keys | batch_keys)


def priority_of(head: RequestHead, batch_keys: frozenset[str]) -> Priority:
    """What the header asks for, but no more than the key allows; raises MalformedRequest for an unknown class."""
    wanted = head.priority
    if wanted is None and not batch_keys:
        return _USUAL
    try:
        asked = Priority.INTERACTIVE if wanted is None else Priority(wanted.decode("latin-1").strip().lower())
    except ValueError:
        raise MalformedRequest("x-llmux-priority must be interactive or batch") from None
    return Priority.BATCH if batch_keys and _is_one_of(_given(head), batch_keys) else asked


def _given(head: RequestHead) -> bytes:
    """The bearer token, or else x-api-key."""
    scheme, _, token = (head.authorization or b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else (head.x_api_key or b"").strip()


def _is_one_of(given: bytes, keys: frozenset[str]) -> bool:
    matches = [compare_digest(given, key.encode()) for key in keys]
    return any(matches)
