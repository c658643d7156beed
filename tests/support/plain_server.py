"""A small server that is no engine llmux knows: it answers chats with its own name, and has a queue of slow work.

    python plain_server.py PORT NAME

``POST /prompt`` answers at once; its work goes on until ``POST /finish``, and ``GET /queue`` lists it. ``POST /free``
frees memory a moment later, as ``GET /memory`` tells, or never if ``POST /clog`` came before. Standard library only.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FREE_SECONDS = 0.3

running: list[str] = []
asked: list[str] = []
freed_at: list[float] = []
clogged: list[bool] = []


class Handler(BaseHTTPRequestHandler):
    """One connection; every answer is JSON."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        now = time.monotonic()
        answers: dict[str, Any] = {
            "/ready": {},
            "/queue": {"queue_running": running, "queue_pending": []},
            "/memory": {"devices": [{"free": 100 if freed_at and now >= freed_at[-1] and not clogged else 10}]},
            "/asked": asked,
            "/": "a page",
            "/assets/index.js": "a script",
        }
        if self.path != "/ready" and self.path != "/asked":
            asked.append(f"GET {self.path}")
        self.answer(answers.get(self.path))

    def do_DELETE(self) -> None:
        asked.append(f"DELETE {self.path}")
        self.answer({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}")
        asked.append(f"POST {self.path} {json.dumps(body)}")
        match self.path.partition("?")[0]:
            case "/v1/chat/completions":
                message = {"role": "assistant", "content": f"{sys.argv[2]} {os.getpid()}"}
                self.answer({"model": body["model"], "choices": [{"index": 0, "message": message}]})
            case "/prompt":
                running.append("work")
                self.answer({"prompt_id": "1"})
            case "/finish":
                running.clear()
                self.answer({})
            case "/free":
                freed_at.append(time.monotonic() + FREE_SECONDS)
                self.answer({})
            case "/load":
                freed_at.clear()
                self.answer({})
            case "/clog":
                clogged.append(True)
                self.answer({})
            case _:
                self.answer(None)

    def answer(self, document: Any) -> None:
        text = json.dumps(document).encode()
        self.send_response(404 if document is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the tests read what they need from the server itself."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    print("serving", sys.argv[2], flush=True)
    server.serve_forever()
