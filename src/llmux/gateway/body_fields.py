"""The fields that msgspec finds in a JSON body. Never compiled: into a compiled Struct it decodes nothing."""

import msgspec

ABSENT = msgspec.Raw(b"")
"""What stands for a field that the body does not have; to be compared by identity."""


class BodyFields(msgspec.Struct):
    """Left unparsed but for the model: an engine may accept more than a boolean or a number."""

    model: str | None = None
    stream: msgspec.Raw = ABSENT
    keep_alive: msgspec.Raw = ABSENT


decode_fields = msgspec.json.Decoder(BodyFields).decode
"""Raises ``msgspec.DecodeError``, UnicodeDecodeError or RecursionError."""
