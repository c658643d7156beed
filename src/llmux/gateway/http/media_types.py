"""What a Content-Type announces, as far as engines tell bodies apart."""

from llmux.engines.paths import MediaType


def media_type(content_type: bytes) -> MediaType:
    """The kind of body that a Content-Type announces."""
    name = content_type.partition(b";")[0].strip().lower()
    if name == b"application/json" or (name.startswith(b"application/") and name.endswith(b"+json")):
        return MediaType.JSON
    return MediaType.FORM if name == b"multipart/form-data" else MediaType.OTHER


def is_plain_json(content_type: bytes) -> bool:
    """Whether engines take a Content-Type for JSON that compare what stands before the semicolon."""
    return content_type.partition(b";")[0].lower() == b"application/json"
