"""A real HTTP server that speaks S3 (moto's), in a process of its own."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llmux.checkpoints.object_store import ObjectStore, StoreAddress, open_store

BUCKET = "images"
START = """
import logging, signal
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
signal.pause()
"""


@dataclass(frozen=True, slots=True)
class S3Server:
    """The server, which takes any keys."""

    endpoint: str
    bucket: str = BUCKET

    @property
    def settings(self) -> dict[str, str]:
        """As in the section ``object_store``, by 0.7.7's keys."""
        keys = {"access_key": "an-access-key", "secret_key": "a-secret-key"}
        return {"endpoint": self.endpoint, "bucket": self.bucket, **keys}

    @property
    def address(self) -> StoreAddress:
        options: dict[str, Any] = {
            "endpoint": self.endpoint,
            "access_key_id": "an-access-key",
            "secret_access_key": "a-secret-key",
            "region": "us-east-1",
            "virtual_hosted_style_request": "false",
        }
        return StoreAddress(f"s3://{self.bucket}", options, allows_http=True)

    def open(self) -> ObjectStore:
        """llmux's own client of it."""
        return open_store(self.address)

    def make_bucket(self, name: str) -> "S3Server":
        """The same server with a new bucket."""
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        urllib.request.urlopen(request).close()
        return S3Server(self.endpoint, name)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """The server with an empty bucket, until the end of the block."""
    with subprocess.Popen([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield S3Server(f"http://127.0.0.1:{int(process.stdout.readline())}").make_bucket(BUCKET)
        finally:
            process.kill()
