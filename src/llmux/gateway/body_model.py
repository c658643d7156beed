"""The model's name in a request's body, as JSON or as a form: reading it, and replacing it."""

from typing import Any, NamedTuple

import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from llmux.gateway.errors import InvalidJson, MalformedRequest, MissingModel

_MAX_MODEL_NAME_BYTES = 1024
_MAX_FORM_PARTS = 256
_TRUE = frozenset((b"true", b"1", b"yes", b"on", b"t", b"y"))
"""What pydantic, with which engines validate, takes for true in a field of type bool, in lower case."""


class _Fields(msgspec.Struct):
    model: str | None = None
    stream: msgspec.Raw = msgspec.Raw(b"false")
    """Left unparsed: an engine may accept more than a boolean."""


_decoder = msgspec.json.Decoder(_Fields)


class JsonBody(NamedTuple):
    """What the gateway reads in a JSON body."""

    model: str | None
    streams: bool
    """Whether the answer is to come as a stream."""


def model_in_json(body: bytes) -> tuple[str, bool]:
    """The top-level string ``model``, and whether ``stream`` is true.

    Raises InvalidJson, MissingModel or MalformedRequest.
    """
    if not body:
        raise MissingModel
    try:
        fields = _decoder.decode(body)
    except msgspec.ValidationError:
        raise MalformedRequest('the body must be a JSON object whose "model" is a string') from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidJson("the body is not valid JSON") from None
    if not fields.model:
        raise MissingModel
    return fields.model, _is_true(fields.stream)


def peek_json(body: bytes) -> JsonBody | None:
    """Like ``model_in_json`` for a body that may lack a model; None if it cannot be parsed."""
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return JsonBody(fields.model, _is_true(fields.stream))


def _is_true(value: msgspec.Raw) -> bool:
    return bytes(value).strip(b'"').lower() in _TRUE


def replace_model(body: bytes, model: str) -> bytes:
    """The JSON object with its top-level ``model`` replaced; every other value keeps its spelling."""
    fields: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields["model"] = model
    return msgspec.json.encode(fields)


class _FormModel:
    """Callbacks of a multipart parser that collect the field ``model``."""

    def __init__(self) -> None:
        self.model: bytes | None = None
        self._parts = 0
        self._header_name = b""
        self._header_value = b""
        self._is_model = False

    def on_part_begin(self) -> None:
        self._is_model = False
        self._parts += 1
        if self._parts > _MAX_FORM_PARTS:
            raise MalformedRequest(f"the form has more than {_MAX_FORM_PARTS} fields")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, parameters = parse_options_header(self._header_value)
            self._is_model = parameters.get(b"name") == b"model" and b"filename" not in parameters
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        if self._is_model:
            self.model = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_model and self.model is not None:
            self.model += data[start:end]
            if len(self.model) > _MAX_MODEL_NAME_BYTES:
                raise MalformedRequest('the form\'s field "model" is too long')


def model_in_form(body: bytes, content_type: bytes) -> str:
    """The last field ``model`` of a multipart form; raises MalformedRequest or MissingModel."""
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise MalformedRequest("the multipart body's Content-Type names no boundary")
    form = _FormModel()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": form.on_part_begin,
            "on_part_data": form.on_part_data,
            "on_header_field": form.on_header_field,
            "on_header_value": form.on_header_value,
            "on_header_end": form.on_header_end,
            "on_headers_finished": form.on_headers_finished,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except MultipartParseError:
        raise MalformedRequest("the multipart body is malformed") from None
    if not form.model:
        raise MissingModel
    try:
        return form.model.decode()
    except UnicodeDecodeError:
        raise MalformedRequest('the form\'s field "model" is not UTF-8') from None
