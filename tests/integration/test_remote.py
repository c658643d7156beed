"""``engine: remote``: servers that run without llmux, beside what is on the GPU."""

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import free_port
from tests.support.bench import DISCARD, OFFLOAD, SLOW, eventually, serving, with_flags
from tests.support.gateway import Message, parse_head
from tests.support.server import chat, llmux_server, simulated_config

ANSWER = b'{"object":"chat.completion","choices":[]}'


@dataclass
class TlsServer:
    """Answers every request the same over TLS, and keeps what it was sent."""

    port: int = 0
    certificate: Path = Path()
    names: list[str | None] = field(default_factory=list)
    seen: list[Message] = field(default_factory=list)
    answer: bytes = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER
    )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = parse_head(await reader.readuntil(b"\r\n\r\n"))
                request.body = await reader.readexactly(int(request.get("content-length") or 0))
                self.seen.append(request)
                writer.write(self.answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @property
    def posts(self) -> list[Message]:
        return [request for request in self.seen if request.start.startswith(b"POST")]


@asynccontextmanager
async def tls_server(directory: Path) -> AsyncIterator[TlsServer]:
    """Its certificate is for ``localhost`` alone, and is its own authority."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = TlsServer(certificate=certificate)
    context.sni_callback = lambda _socket, name, _context: server.names.append(name)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


def remote(url: str, **more: Any) -> dict[str, Any]:
    return {"engine": "remote", "url": url, **more}


async def test_another_llmux_serves_beside_the_model_on_the_gpu(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    config = simulated_config({"big": OFFLOAD}, api_keys=["remote-key"])
    async with llmux_server(config, there) as other:
        far = remote(f"{other.url}/v1", api_key="remote-key", model_path="big")
        async with serving({"a": OFFLOAD, "b": DISCARD, "far": far}, tmp_path) as bench:
            await bench.expect("a")
            for _ in range(2):
                answer = await bench.ask("far")
                assert answer.status == 200, answer.text
                assert answer.document["model"] == "big"
            status = await bench.status()
            assert status["resident"] == ["a"]
            assert status["active_model"] == "a"
            assert (status["models"]["far"]["on_gpu"], status["models"]["far"]["process_state"]) == (False, "running")
            assert status["models"]["far"]["address"] == f"{other.url}/v1"
            await bench.expect("b")
            assert (await bench.process_state("far")) == "running", "it is never a victim"
            assert bench.starts("a") == 1


async def test_a_tls_server_gets_its_own_name_key_and_path_and_nothing_of_the_client(tmp_path: Path) -> None:
    async with tls_server(tmp_path) as server:
        far = remote(f"https://localhost:{server.port}/api/v1", api_key="theirs", model_path="vendor/model")
        environment = {"SSL_CERT_FILE": str(server.certificate)}
        async with serving({"far": far}, tmp_path, environment=environment, api_keys=["ours"]) as bench:
            headers = {
                "authorization": "Bearer ours",
                "x-llmux-note": "1",
                "cookie": "a=b",
                "origin": "http://x.example",
            }
            answer = await bench.call("POST /v1/chat/completions", chat("far", "hello"), headers=headers)
            assert (answer.status, answer.text.encode()) == (200, ANSWER)
            headers = {"x-api-key": "ours", "anthropic-version": "2023-06-01"}
            assert (await bench.call("POST /v1/messages", chat("far", "hello"), headers=headers)).status == 200
        assert set(server.names) == {"localhost"}
        assert server.seen[0].start == b"GET /api/v1/models HTTP/1.1"
        first, second = server.posts
        assert first.start == b"POST /api/v1/chat/completions HTTP/1.1"
        assert first.all("host") == [f"localhost:{server.port}".encode()]
        assert first.all("authorization") == [b"Bearer theirs"]
        assert json.loads(first.body)["model"] == "vendor/model"
        assert second.all("x-api-key") == [b"theirs"]
        assert second.all("authorization") == []
        assert second.all("anthropic-version") == [b"2023-06-01"]
        for request in (first, second):
            assert b"ours" not in request.raw_head
            assert not [name for name, _ in request.fields if name in (b"cookie", b"origin", b"x-llmux-note")]


@pytest.mark.parametrize(
    ("host", "trusted", "expected"),
    [
        ("localhost", False, "certificate is not valid here: self-signed certificate"),
        ("127.0.0.1", True, "certificate is not valid here: IP address mismatch"),
    ],
)
async def test_an_invalid_certificate_is_a_503_that_says_so(
    tmp_path: Path, host: str, trusted: bool, expected: str
) -> None:
    async with tls_server(tmp_path) as server:
        environment = {"SSL_CERT_FILE": str(server.certificate)} if trusted else {}
        far = remote(f"https://{host}:{server.port}", api_key="theirs")
        async with serving({"far": far}, tmp_path, environment=environment) as bench:
            answer = await bench.ask("far")
            assert (answer.status, answer.code) == (503, "model_unavailable")
            assert expected in answer.text.replace("self signed", "self-signed")
        assert server.seen == [], "the key is sent to nobody unknown"


async def test_nobody_there_is_a_503_with_back_off_and_a_reason_that_names_the_url(tmp_path: Path) -> None:
    port = free_port()
    models = {"far": remote(f"http://127.0.0.1:{port}"), "lost": remote("http://no-such-host.invalid/v1")}
    async with serving({**models, "a": OFFLOAD}, tmp_path) as bench:
        answer = await bench.ask("far")
        assert (answer.status, answer.code) == (503, "model_unavailable")
        assert "refuses connections" in answer.text
        assert str(port) not in answer.text
        assert int(answer.headers["retry-after"]) >= 1
        again = await bench.ask("far")
        assert again.status == 503, "refused at once while it backs off"
        assert f"http://127.0.0.1:{port}: " in (await bench.status())["models"]["far"]["failure"]
        assert "name cannot be looked up" in (await bench.ask("lost")).text
        await bench.expect("a")


async def test_redirects_to_the_remote_lead_through_llmux(tmp_path: Path) -> None:
    async with tls_server(tmp_path) as server:
        own = f"https://localhost:{server.port}/api/v1"
        environment = {"SSL_CERT_FILE": str(server.certificate)}
        async with serving({"far": remote(own)}, tmp_path, environment=environment) as bench:
            assert (await bench.ask("far")).status == 200
            for told, expected in (
                (f"{own}/elsewhere?a=b", "/v1/elsewhere?a=b"),
                ("https://example.org/x", "https://example.org/x"),
            ):
                head = f"HTTP/1.1 307 Temporary Redirect\r\nlocation: {told}\r\ncontent-length: 0\r\n\r\n"
                server.answer = head.encode()
                body = chat("far", "x")
                answer = await bench.call("POST /v1/chat/completions", body, allow_redirects=False)
                assert answer.headers["location"] == expected


async def test_a_remote_that_dies_in_mid_stream_breaks_the_stream_and_comes_back(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    port = free_port()
    config = {**simulated_config({"far": with_flags(OFFLOAD, *SLOW)}), "port": port}
    async with serving({"far": remote(f"http://127.0.0.1:{port}"), "a": OFFLOAD}, tmp_path) as bench:
        async with llmux_server(config, there) as other:
            async with bench.stream("far", max_tokens=200) as stream:
                await stream.read(2)
                other.process.kill()
                await other.process.wait()
                await stream.read()
                assert not stream.is_complete
                assert any('"error"' in event for event in stream.events)
        await bench.expect("a")
        async with llmux_server(config, there):

            async def reached() -> bool:
                return (await bench.ask("far")).status == 200

            await eventually(reached, "the remote is found again")
