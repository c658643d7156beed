"""Whether a request carries one of the configured keys."""

from hmac import compare_digest

from llmux.gateway.request_head import RequestHead


def is_authorized(head: RequestHead, keys: frozenset[str]) -> bool:
    """Compares the bearer token, or else x-api-key, with every key in constant time; no keys: anyone may."""
    if not keys:
        return True
    scheme, _, token = (head.authorization or b"").partition(b" ")
    given = token.strip() if scheme.lower() == b"bearer" else (head.x_api_key or b"").strip()
    matches = [compare_digest(given, key.encode()) for key in keys]
    return any(matches)
