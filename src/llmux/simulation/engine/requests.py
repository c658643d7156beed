"""Request validation with vLLM's error messages."""

import json
from typing import Any

from aiohttp import web

MAX_BODY_BYTES = 1 << 30


class Refused(Exception):
    """The request is invalid; carries the error response."""

    def __init__(self, status: int, type_: str, message: str, parameter: str | None = None) -> None:
        # vLLM's format is OpenAI's, but with the HTTP status as a numeric code.
        self.document = {"error": {"message": message, "type": type_, "param": parameter, "code": status}}
        self.response = web.json_response(self.document, status=status)
        self.is_of_form = type_ == "Bad Request"
        """Whether the body's form is at fault, which is found before the endpoint is called."""
        super().__init__(message)


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body's JSON object; raises Refused."""
    if request.content_type != "application/json":
        raise Refused(400, "Bad Request", "Unsupported Media Type: Only 'application/json' is allowed")
    try:
        body = json.loads(await request.read())
    except ValueError as error:
        raise Refused(400, "Bad Request", f"1 validation error:\n  JSON decode error: {error}") from error
    if not isinstance(body, dict):
        raise Refused(400, "Bad Request", "1 validation error:\n  Input should be a valid dictionary")
    return body


def required(body: dict[str, Any], key: str) -> Any:
    """A mandatory field; raises Refused."""
    if body.get(key) is None:
        raise Refused(400, "Bad Request", f"1 validation error:\n  {key}: Field required", f"body.{key}")
    return body[key]


def token_limit(body: dict[str, Any], default: int, prompt_tokens: int, max_model_tokens: int) -> int:
    """The most tokens to generate; raises Refused."""
    limit = next((body[key] for key in ("max_completion_tokens", "max_tokens") if body.get(key) is not None), default)
    if not isinstance(limit, int) or limit < 1:
        raise Refused(400, "BadRequestError", f"max_tokens must be at least 1, got {limit}.", "max_tokens")
    if prompt_tokens + limit > max_model_tokens:
        message = (
            f"This model's maximum context length is {max_model_tokens} tokens. However, you requested {limit} output "
            f"tokens and your prompt contains {prompt_tokens} input tokens."
        )
        raise Refused(400, "BadRequestError", message, "max_tokens")
    return limit
