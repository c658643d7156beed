"""Authentication by API key, and the priority that a request gets by its key and its header."""

from hmac import compare_digest

from llmux.core.request import Priority
from llmux.gateway.errors import InvalidApiKey, MalformedRequest
from llmux.gateway.http.request_head import RequestHead


class ApiKeys:
    """The configured keys. ``batch_keys`` are further ones, whose requests all have batch priority."""

    __slots__ = ("_keys",)

    def __init__(self, keys: frozenset[str], batch_keys: frozenset[str] = frozenset()) -> None:
        # Batch last: a key that is in both sets is a batch key.
        self._keys = [(key.encode(), Priority.INTERACTIVE) for key in keys]
        self._keys += [(key.encode(), Priority.BATCH) for key in batch_keys]

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._keys)

    def authenticate(self, head: RequestHead) -> Priority:
        """The highest priority that the request's key allows; without configured keys, everybody has the highest.

        Raises InvalidApiKey.
        """
        if not self._keys:
            return Priority.INTERACTIVE
        scheme, _, token = (head.authorization or b"").partition(b" ")
        bearer = token.strip() if scheme.lower() == b"bearer" else b""
        other = (head.x_api_key or b"").strip()
        # Every key is compared, in constant time: how long it takes tells nothing about how close a guess was. Clients
        # that must send some Authorization, and have their key in x-api-key, send both.
        matches = [priority for key, priority in self._keys if compare_digest(bearer, key) | compare_digest(other, key)]
        if not matches:
            raise InvalidApiKey
        return matches[-1]


def requested_priority(header: bytes, allowed: Priority) -> Priority:
    """What ``x-llmux-priority`` asks for, but no higher than ``allowed``; raises MalformedRequest if it is unknown."""
    try:
        requested = Priority(header.decode("latin-1").strip().lower())
    except ValueError:
        raise MalformedRequest("x-llmux-priority must be interactive or batch") from None
    return allowed if allowed is Priority.BATCH else requested
