"""A connection to a server that llmux does not run: requests are rewritten for it, at no cost for those to engines."""

from llmux.access import Remote
from llmux.gateway.endpoints import is_anthropic
from llmux.gateway.http.bodies import Body
from llmux.gateway.proxy.engine_connection import AnswerReceiver, ConnectionOwner, EngineConnection

_NOT_FOR_OTHERS = frozenset(
    (b"origin", b"referer", b"forwarded", b"x-real-ip", b"x-goog-api-key", b"ocp-apim-subscription-key")
)
"""Who the client is and where it sits, and names of keys that llmux itself does not read."""
_PREFIXES_NOT_FOR_OTHERS = (b"x-llmux-", b"x-forwarded-", b"sec-fetch-")


class RemoteConnection(EngineConnection):
    """Adds the base path and the server's own key, and drops what it need not know.

    Credentials of the client's and cookies do not get here: ``RequestHead`` forwards none.
    """

    __slots__ = ("_api_key", "_remote")

    def __init__(self, owner: ConnectionOwner, remote: Remote, api_key: str | None) -> None:
        super().__init__(owner)
        self._remote = remote
        self._api_key = api_key

    def send(self, receiver: AnswerReceiver, head: bytes, body: Body, to_head_request: bool, has_waited: bool) -> None:
        request_line, _, fields = head.partition(b"\r\n")
        method, target, version = request_line.split(b" ")
        kept = [line for line in fields.split(b"\r\n") if _may_pass(line)]
        if self._api_key:
            kept.insert(1, _credentials(target.partition(b"?")[0], self._api_key))
        joined = self._remote.join(target.decode("latin-1")).encode("latin-1")
        head = b"\r\n".join((b" ".join((method, joined, version)), *kept))
        super().send(receiver, head, body, to_head_request, has_waited)


def _may_pass(line: bytes) -> bool:
    name = line.partition(b":")[0].lower()
    return name not in _NOT_FOR_OTHERS and not name.startswith(_PREFIXES_NOT_FOR_OTHERS)


def _credentials(path: bytes, api_key: str) -> bytes:
    """In the header that the API of the path has for it."""
    return (f"x-api-key: {api_key}" if is_anthropic(path) else f"authorization: Bearer {api_key}").encode()
