"""A client of a running llmux's control API.

It uses the standard library's urllib: importing aiohttp would take longer than the call.
"""

import json
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from llmux.errors import LlmuxError

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Far above any real answer; it bounds what a server that is not llmux can make us read."""
READ_TIMEOUT_SECONDS = 30.0
"""Of questions only. Commands have no timeout, since a cold start can take half an hour."""


class Unreachable(LlmuxError):
    """No llmux answers at the address."""


class Refused(LlmuxError):
    """llmux refused the command, or the command failed."""


class RemoteControl:
    """The control API of one running llmux."""

    def __init__(self, url: str, admin_key: str | None) -> None:
        self._url = url.rstrip("/")
        self._admin_key = admin_key
        # Without a proxy from the environment: through one, llmux would refuse the call as not local.
        self._opener = build_opener(ProxyHandler({}))

    def get(self, path: str) -> Any:
        """The JSON document at the path. Raises Unreachable, Refused."""
        return self._call(Request(self._url + path), READ_TIMEOUT_SECONDS)

    def post(self, path: str, document: object = None) -> str:
        """Run a command, wait for its end, and return llmux's message. Raises Unreachable, Refused."""
        request = Request(self._url + path, data=json.dumps(document or {}).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        answer = self._call(request, None)
        return str(answer.get("message", "")) if isinstance(answer, dict) else ""

    def _call(self, request: Request, timeout_seconds: float | None) -> Any:
        if self._admin_key:
            request.add_header("Authorization", f"Bearer {self._admin_key}")
        try:
            with self._opener.open(request, timeout=timeout_seconds) as answer:
                return json.loads(answer.read(MAX_ANSWER_BYTES))
        except HTTPError as error:
            with error:
                raise Refused(self._reason(error)) from None
        except URLError as error:
            raise Unreachable(f"nothing listens at {self._url} ({error.reason}): is llmux running?") from None
        except OSError as error:
            raise Unreachable(f"{self._url} broke off ({error}): has llmux been stopped?") from None
        except ValueError:
            raise Unreachable(f"{self._url} answers, but it is not llmux") from None

    def _reason(self, error: HTTPError) -> str:
        if error.code == HTTPStatus.UNAUTHORIZED:
            what = "the key is wrong" if self._admin_key else "a key is needed"
            return f"{what}: give llmux's admin_key with --admin-key, or in LLMUX_ADMIN_KEY"
        return _message_of(error)


def _message_of(error: HTTPError) -> str:
    try:
        document = json.loads(error.read(MAX_ANSWER_BYTES))
        return str(document["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"the answer was {error.code} {error.reason}; is this the address of llmux?"
