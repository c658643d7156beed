"""What llmux reads in a request's body, the model's name above all, and putting another name there."""

from typing import Any, NamedTuple

import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from llmux.errors import InvalidJson, MalformedRequest, MissingModel

_MAX_MODEL_NAME_BYTES = 1024
_MAX_FORM_PARTS = 256
_TRUE = frozenset((b"true", b"1", b"yes", b"on", b"t", b"y"))


class _Read(msgspec.Struct):
    model: str | None = None
    stream: msgspec.Raw = msgspec.Raw(b"false")


_decoder = msgspec.json.Decoder(_Read)


class Inside(NamedTuple):
    """What stands in a body: the model if there is one, and whether the answer shall come in pieces."""

    model: str | None
    streams: bool


def model_in_json(body: bytes) -> tuple[str, bool]:
    """The top-level string ``model``, and whether ``stream`` is true; raises InvalidJson or MissingModel."""
    if not body:
        raise MissingModel
    try:
        read = _decoder.decode(body)
    except msgspec.ValidationError:
        raise MalformedRequest('the body must be a JSON object whose "model" is a string') from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidJson("the body is not valid JSON") from None
    if not read.model:
        raise MissingModel
    return read.model, _is_true(read.stream)


def read_json(body: bytes) -> Inside | None:
    """The same where a body without a (readable) model is no error; None: nothing of it can be read."""
    try:
        read = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Inside(read.model, _is_true(read.stream))


def _is_true(value: msgspec.Raw) -> bool:
    """As engines that validate with pydantic understand it."""
    return bytes(value).strip(b'"').lower() in _TRUE


def replace_model(body: bytes, model: str) -> bytes:
    """The JSON object with its top-level ``model`` replaced and every other value as it was written."""
    fields: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields["model"] = model
    return msgspec.json.encode(fields)


class _FormModel:
    """Listens to a multipart parser for the field ``model``."""

    def __init__(self) -> None:
        self.model: bytes | None = None
        self._parts = 0
        self._header_name = b""
        self._header_value = b""
        self._wanted = False

    def on_part_begin(self) -> None:
        self._wanted = False
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
            self._wanted = parameters.get(b"name") == b"model" and b"filename" not in parameters
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        if self._wanted:
            self.model = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted and self.model is not None:
            self.model += data[start:end]
            if len(self.model) > _MAX_MODEL_NAME_BYTES:
                raise MalformedRequest('the form\'s field "model" is too long')


def model_in_form(body: bytes, content_type: bytes) -> str:
    """The last field ``model`` of a multipart form; raises MalformedRequest or MissingModel."""
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise MalformedRequest("the multipart body's Content-Type names no boundary")
    found = _FormModel()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": found.on_part_begin,
            "on_part_data": found.on_part_data,
            "on_header_field": found.on_header_field,
            "on_header_value": found.on_header_value,
            "on_header_end": found.on_header_end,
            "on_headers_finished": found.on_headers_finished,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except MultipartParseError:
        raise MalformedRequest("the multipart body is malformed") from None
    if not found.model:
        raise MissingModel
    try:
        return found.model.decode()
    except UnicodeDecodeError:
        raise MalformedRequest('the form\'s field "model" is not UTF-8') from None


def is_form(content_type: bytes) -> bool:
    """Whether a Content-Type announces a multipart form."""
    return content_type[:20].lower().startswith(b"multipart/form-data")
