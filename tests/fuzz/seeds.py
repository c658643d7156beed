"""Where the fuzzer begins: a small corpus for each target, and the tokens that it puts together."""

from tests.fuzz.targets import BOUNDARY, REPETITIONS

_BODY = b'{"model":"m","stream":true,"n":1}'


def _post(body: bytes, *fields: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    return b"\r\n".join([b"POST %b HTTP/1.1" % path, b"Host: x", *fields, b"", b""]) + body


def _request() -> list[bytes]:
    length = b"Content-Length: %d" % len(_BODY)
    sized = _post(_BODY, length, b"Content-Type: application/json")
    health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    multipart = _form()[0]
    of_form = b"Content-Type: multipart/form-data; boundary=" + BOUNDARY
    return [
        sized,
        sized + sized,
        health * 3,
        b"\r\n\r\n" + health + sized,
        _post(
            b"5\r\n" + _BODY[:5] + b"\r\n1c;a=b\r\n" + _BODY[5:] + b"\r\n0\r\nT: 1\r\n\r\n",
            b"Transfer-Encoding: chunked",
        ),
        _post(_BODY, length, b"Expect: 100-continue", b"Connection: close"),
        _post(_BODY, length, path=b"/upstream/m/v1/completions?a=b"),
        _post(_BODY, length, b"model-override: m", b"x-request-id: one", b"x-llmux-priority: batch"),
        _post(_BODY, length, b"x-llmux-keep-alive: 1h30m"),
        _post(b"", b"Content-Length: 0", path=b"/v1/models"),
        _post(multipart, of_form, b"Content-Length: %d" % len(multipart), path=b"/v1/audio/transcriptions"),
        b"GET http://x/v1/models/m HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n\r\n",
        b"POST /v1/completions HTTP/1.0\r\nContent-Length: 13\r\n\r\n" + _BODY[:12] + b"}",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings:\r\n\r\n",
        b"OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\nOrigin: http://a\r\nAccess-Control-Request-Method: GET\r\n\r\n",
        _post(_BODY, b"Content-Length: " + b"0" * 4200 + b"33"),
        _post(_BODY, length, b"Content-Encoding: gzip", b"Trailer: a", b"TE: trailers", b"Proxy-Connection: close"),
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /sleep HTTP/1.1\r\nHost: x\r\n\r\n",
    ]


def _chunked() -> list[bytes]:
    return [
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;name=value\r\nhello\r\nA\r\n0123456789\r\n00\r\nTrailer: value\r\nOther: v\r\n\r\n",
        b"1\r\na\r\n" * 20 + b"0\r\n\r\n",
        b'10\r\ndata: {"a": 1}\n\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n',
        b"0\r\n\r\n" * 2,
        b"fffffffffffffff\r\n",
    ]


def _answer() -> list[bytes]:
    head = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\n"
    return [
        head + b"content-length: 5\r\n\r\nhello",
        head + b"content-length: 0\r\n\r\n",
        head + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        head + b"\r\nhello",
        head + b"connection: close, x-a\r\nx-a: 1\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        + head
        + b"content-length: 1\r\n\r\na",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n",
        b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:8001/v1\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        head
        + b"set-cookie: a=b\r\nx-request-id: 1\r\nkeep-alive: timeout=5\r\ncontent-length: 5\r\n\r\nhello and more",
    ]


def _form() -> list[bytes]:
    line = b"\r\n--" + BOUNDARY
    part = b'\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b'
    name, file = part % (b"model", b"", b"m"), part % (b"file", b'; filename="a.wav"', b"\x00RIFF\r\n--")
    return [
        (line + name + line + file + line + b"--\r\n")[2:],
        (line + file + line + name + line + name + line + b"--")[2:],
        (line + part % (b"model", b"; filename*=UTF-8''m", b"m") + line + b"--")[2:],
        b"preamble" + line + b"\r\n\r\n\r\n" + line + name + line,
    ]


def _json() -> list[bytes]:
    return [
        b'{"model":"m"}',
        b'\xef\xbb\xbf{"model": "m", "stream": "true", "messages": [{"content": "\\u00e9\\ud83d\\ude00"}]}',
        b'{"model":"a","model":"b","a":[1.5e3,-0,NaN,Infinity,null,true],"":{"model":"c"}}',
        b'{"model":"\\ud800","\\u006dodel":"n"}',
        b'{"a":"\xc3\xa9","model":"org/name:7b","b":[[[[]]]]}',
        b'"m"',
        b"[]",
        b"{}",
    ]


def _model() -> list[bytes]:
    json_seeds = [how + body for how in (b"\x00", b"\x01") for body in _json()]
    forms = [b"\x02" + body for body in _form()]
    return [*json_seeds, *forms, *(b"\x03boundary=" + BOUNDARY + b"; charset=utf-8\n" + body for body in _form())]


def _repeated() -> list[bytes]:
    units = (
        b"1\r\na\r\n",
        b"GET /health HTTP/1.1\r\nHost:a\r\n\r\n",
        b"a:\r\n",
        b"\r\n",
        b'"\\u00e9",',
        b"HTTP/1.1 100 C\r\n\r\n",
    )
    forms = (b"\r\n--" + BOUNDARY, b'\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n--' + BOUNDARY)
    return [bytes((place, 1)) + unit for place in range(len(REPETITIONS)) for unit in (*units, *forms)]


def _parsers() -> list[bytes]:
    kinds = (_request(), _answer(), _answer(), _chunked(), _chunked())
    return [bytes((number,)) + seed for number, kind in enumerate(kinds) for seed in kind]


SEEDS = {
    "request": _request,
    "chunked": _chunked,
    "answer": _answer,
    "model": _model,
    "parsers": _parsers,
    "repeated": _repeated,
}
"""Each makes its target's corpus."""

TOKENS = [
    *(
        b"\r\n",
        b"\r",
        b"\n",
        b"\r\n\r\n",
        b": ",
        b" :",
        b"\t",
        b"\x00",
        b"\x7f",
        b"\xff",
        b"0\r\n\r\n",
        b"HTTP/1.1",
        b"HTTP/1.0",
    ),
    *(
        b"POST ",
        b"GET ",
        b"HEAD ",
        b"OPTIONS ",
        b"CONNECT ",
        b"/v1/completions",
        b"/upstream/m/",
        b"/health",
        b"/control/",
        b"//",
    ),
    *(
        b"Content-Length: ",
        b"Transfer-Encoding: ",
        b"chunked",
        b"identity",
        b"gzip",
        b"Connection: ",
        b"close",
        b"keep-alive",
    ),
    *(
        b"Expect: 100-continue",
        b"Upgrade: ",
        b"h2c",
        b"websocket",
        b"Host: ",
        b"Content-Type: ",
        b"multipart/form-data",
    ),
    *(
        b"boundary=",
        b"application/json",
        b"Authorization: Bearer ",
        b"model-override: ",
        b"x-request-id: ",
        b"Trailer: ",
    ),
    *(
        b"Content-Encoding: ",
        b"Origin: ",
        b"Location: ",
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 204 ",
    ),
    *(
        b'"model"',
        b'"model":"m"',
        b'"stream":true',
        b"\\u006d",
        b"\\ud800",
        b"\xef\xbb\xbf",
        b"NaN",
        b"Infinity",
        b"1e999",
    ),
    *(b"Content-Disposition: form-data; ", b'name="model"', b"filename=", b"filename*=UTF-8''", b"--" + BOUNDARY),
]


def dictionary() -> str:
    """The tokens in libFuzzer's format."""
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in TOKENS)
