"""What a Content-Type announces: the route's check and the head that is parsed must not tell forms in two ways."""

import pytest

from llmux.engines.paths import MediaType
from llmux.gateway.http.media_types import media_type
from llmux.gateway.http.request_head import RequestHead


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        (b"application/json", MediaType.JSON),
        (b"Application/JSON ; charset=utf-8", MediaType.JSON),
        (b"application/vnd.api+json", MediaType.JSON),
        (b"multipart/form-data; boundary=B", MediaType.FORM),
        (b"MULTIPART/Form-Data ;boundary=B", MediaType.FORM),
        (b"multipart/form-data-like; boundary=B", MediaType.OTHER),
        (b"multipart/form-dataset", MediaType.OTHER),
        (b"multipart/mixed; boundary=B", MediaType.OTHER),
        (b"text/json", MediaType.OTHER),
    ],
)
def test_kinds_of_bodies(content_type: bytes, kind: MediaType) -> None:
    assert media_type(content_type) is kind
    head = RequestHead()
    head.parse(b"POST /v1/audio/translations HTTP/1.1\r\nHost: h\r\nContent-Type: " + content_type + b"\r\n\r\n")
    assert head.is_form is (kind is MediaType.FORM)
