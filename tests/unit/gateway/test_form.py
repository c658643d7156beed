"""Reading and replacing the model's name in multipart forms."""

import pytest
from python_multipart import MultipartParser

from llmux.engines.paths import MediaType
from llmux.gateway import pieces
from llmux.gateway.errors import MalformedRequest
from llmux.gateway.form import LARGE_FORM_BYTES, read_form
from llmux.gateway.http.media_types import media_type

CONTENT_TYPE = b'multipart/form-data; boundary="B"'


def form(*parts: str) -> bytes:
    return "".join(f"--B\r\n{part}\r\n" for part in parts).encode() + b"--B--\r\n"


def field(name: str, value: str) -> str:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'


MODEL = field("model", "whisper")
FILE = 'Content-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav\r\n\r\n"model":\x01'
DECOY = 'Content-Disposition: form-data; name="model"; filename="x"\r\n\r\ndecoy'


def test_form_field() -> None:
    assert media_type(CONTENT_TYPE) is MediaType.FORM
    assert read_form(form(FILE, MODEL, DECOY), CONTENT_TYPE).model == "whisper"
    assert read_form(form(MODEL, field("model", "last")), CONTENT_TYPE).model == "last"
    assert read_form(form(field("model", "")), CONTENT_TYPE).model == ""
    assert read_form(form(FILE), CONTENT_TYPE).model is None
    assert read_form(form(), CONTENT_TYPE).model is None


@pytest.mark.parametrize(
    ("value", "streams"), [("true", True), ("True", True), ("1", True), ("false", False), ("", False)]
)
def test_stream_is_read(value: str, streams: bool) -> None:
    assert read_form(form(field("stream", value), MODEL), CONTENT_TYPE).streams is streams
    assert not read_form(form(MODEL), CONTENT_TYPE).streams


@pytest.mark.parametrize(
    "body",
    [
        form(FILE, MODEL),
        form(MODEL, FILE, field("model", "again")),
        b"\r\n" + form(MODEL),
        form(field("text", "\r\n--Bx\r\n--B-\r\n--"), MODEL, field("empty", "")),
        form(MODEL).replace(b"--B\r\n", b"--B \t\r\n"),
        form(MODEL).replace(b"Content-Disposition: ", b"content-disposition:"),
    ],
)
def test_only_the_model_is_replaced(body: bytes) -> None:
    found = read_form(body, CONTENT_TYPE)
    replaced = found.with_model("größer")
    assert replaced == body.replace(b"whisper", "größer".encode()).replace(b"again", "größer".encode())
    assert read_form(replaced, CONTENT_TYPE).model == "größer"


def test_a_model_is_added_to_a_form_without_one() -> None:
    added = read_form(form(FILE), CONTENT_TYPE).with_model("m")
    assert added == form(field("model", "m"), FILE)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(MODEL), b"multipart/form-data"),
        (form(MODEL), b"multipart/form-data; boundary=" + b"B" * 257),
        (b"no form at all", b"multipart/form-data; boundary=B"),
        (b"", b"multipart/form-data; boundary=B"),
        (b"\r\n", b"multipart/form-data; boundary=B"),
        (b"--Bx", b"multipart/form-data; boundary=B"),
        (form(*[FILE] * 300, MODEL), b"multipart/form-data; boundary=B"),
        (form(field("model", "x" * 2000)), b"multipart/form-data; boundary=B"),
        (form(MODEL).replace(b"whisper", b"\xff"), b"multipart/form-data; boundary=B"),
        (b"--B\r\nno colon\r\n\r\nx\r\n--B--", b"multipart/form-data; boundary=B"),
        (b"--B\r\nX: " + b"x" * 20_000, b"multipart/form-data; boundary=B"),
        (form(field("text", "\r\n--Bx" * 400)), b"multipart/form-data; boundary=B"),
    ],
)
def test_malformed_forms(body: bytes, content_type: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_form(body, content_type)


def test_a_part_that_is_cut_off_is_none_as_for_engines() -> None:
    assert read_form(form(MODEL).removesuffix(b"--B--\r\n"), CONTENT_TYPE).model is None


@pytest.mark.parametrize("end", range(len(form(FILE, MODEL))))
def test_a_form_that_is_cut_off_is_read_as_engines_read_it(end: int) -> None:
    """Engines take a field for complete when python-multipart says so."""
    body = form(FILE, MODEL)[:end]
    ended: list[int] = []
    theirs = MultipartParser(b"B", {"on_part_end": lambda: ended.append(1)})
    theirs.write(body)
    try:
        ours = read_form(body, CONTENT_TYPE)
    except MalformedRequest:
        assert not ended or end < len(form(FILE, MODEL))
    else:
        assert (ours.model == "whisper") == (len(ended) == 2)


PARAMETERS = [";" * 40, '"' + ";" * 40, "; a=1" * 40, '; a="' + "x" * 5_000 + '"']


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_headers_with_too_many_parameters_are_refused(parameters: str) -> None:
    """python-multipart takes the square of their number, and a header may be 16 KiB of them."""
    with pytest.raises(MalformedRequest, match="too many parameters"):
        read_form(form(MODEL), CONTENT_TYPE + parameters.encode())
    with pytest.raises(MalformedRequest, match="too many parameters"):
        read_form(form(FILE.replace('"model"', '"model"' + parameters), MODEL), CONTENT_TYPE)


def test_a_large_form_is_searched_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(pieces.time, "sleep", pauses.append)
    file = "\r\n--A" * (LARGE_FORM_BYTES // 5)
    large = form(f"{FILE}{file}", MODEL)
    found = read_form(large, CONTENT_TYPE)
    assert found.model == "whisper" and len(pauses) == len(large) // pieces.PIECE_BYTES
    assert found.with_model("n") == large.replace(b"whisper", b"n")
    pauses.clear()
    assert read_form(form(f"{FILE}{file[: LARGE_FORM_BYTES // 2]}", MODEL), CONTENT_TYPE).model == "whisper"
    assert pauses == []


@pytest.mark.parametrize("offset", range(-6, 2))
def test_a_boundary_is_found_wherever_pieces_are_cut(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces.time, "sleep", lambda _seconds: None)
    padding = "x" * (3 * pieces.PIECE_BYTES + offset - len('"model":.'))
    last = field("last", "y" * LARGE_FORM_BYTES)
    assert read_form(form(f"{FILE}{padding}", MODEL, last), CONTENT_TYPE).model == "whisper"
