"""The object store that images are copied to: obstore's calls, with errors that say what happened in one line.

obstore is part of the extra ``s3`` and imported only when an object store is configured.
"""

import importlib.util
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from llmux.errors import LlmuxError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Backend

EXTRA = "s3"
INSTALL_REMEDY = f"pip install 'llmux-gateway[{EXTRA}]'"
CONNECT_SECONDS = 5
REQUEST_SECONDS = 120
"""For one request: with parts of 16 MiB, eight at a time, that is a megabyte a second in all."""
RETRIES = 3
RETRY_SECONDS = 60
"""Of one request, from its first attempt on; the transfer itself is retried by its owner."""


class StoreFailed(LlmuxError):
    """The object store could not be reached, or refused a request."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the object store failed: {reason}")


class ObjectMissing(StoreFailed):
    """There is no object of that name."""


class StoreUnusable(LlmuxError):
    """The object store cannot be used as it is configured, or obstore is missing."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"the object store cannot be used: {reason}")


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where the object store is: a URL that obstore takes, and options of its own for that kind of store."""

    url: str
    options: Mapping[str, str | bool] = field(default_factory=dict, repr=False)
    """May hold keys."""
    allows_http: bool = False

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory of this machine, which is created if need be."""
        return self.url.startswith("file:")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a listing."""

    key: str
    size_bytes: int
    modified_at: datetime


def is_installed() -> bool:
    """Whether the extra's packages can be imported; they are not imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("obstore", "zstandard"))


def open_store(address: StoreAddress, redact: Callable[[str], str] = str) -> "ObjectStore":
    """Open the store, without a request to it; raises StoreUnusable."""
    if not is_installed():
        raise StoreUnusable("images in an object store need the packages obstore and zstandard", INSTALL_REMEDY)
    from obstore.store import from_url

    if address.is_directory:
        keywords: dict[str, Any] = {"mkdir": True, **address.options}
    else:
        keywords = {
            "client_options": {
                "allow_http": address.allows_http,
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                "timeout": timedelta(seconds=REQUEST_SECONDS),
            },
            "retry_config": {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
            **({"config": dict(address.options)} if address.options else {}),
        }
    try:
        return ObjectStore(from_url(address.url, **keywords), redact)
    except Exception as error:
        # obstore raises errors of its own, ValueError and TypeError for what it does not know.
        raise StoreUnusable(redact(first_line(error))) from None


class ObjectStore:
    """What images need of an object store. Every call raises StoreFailed, and ObjectMissing where one is read."""

    def __init__(self, backend: "Backend", redact: Callable[[str], str] = str) -> None:
        self._backend = backend
        self._redact = redact

    async def put(self, key: str, content: bytes | memoryview) -> None:
        """Store an object, as one request; it is there either completely or not at all."""
        import obstore

        with self._explained():
            await obstore.put_async(self._backend, key, content, use_multipart=False)

    async def get(self, key: str, limit_bytes: int) -> memoryview:
        """The content of an object; raises StoreFailed if it is larger than ``limit_bytes``, without reading it."""
        import obstore

        with self._explained():
            found = await obstore.get_async(self._backend, key)
            size_bytes = found.meta["size"]
            if size_bytes > limit_bytes:
                raise StoreFailed(f"{key} has {size_bytes} bytes, which is more than {limit_bytes}")
            return memoryview(await found.bytes_async())

    async def list_folders(self, prefix: str) -> list[str]:
        """The names of what would be directories below the prefix, in order."""
        import obstore

        with self._explained():
            found = await obstore.list_with_delimiter_async(self._backend, prefix)
        return sorted(folder.rstrip("/").rpartition("/")[2] for folder in found["common_prefixes"])

    async def list_objects(self, prefix: str) -> AsyncIterator[StoredObject]:
        """All objects below the prefix, in any order."""
        import obstore

        with self._explained():
            async for chunk in obstore.list(self._backend, prefix, chunk_size=1000):
                for found in chunk:
                    yield StoredObject(found["path"], found["size"], found["last_modified"])

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; no error for those that do not exist."""
        import obstore

        with self._explained(), suppress(FileNotFoundError):
            await obstore.delete_async(self._backend, keys)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            raise ObjectMissing(self._redact(first_line(error))) from None
        except (BaseError, OSError, ValueError) as error:
            raise StoreFailed(self._redact(first_line(error))) from None


def first_line(error: Exception) -> str:
    """obstore appends the error's Rust source, on lines of its own."""
    return str(error).strip().partition("\n")[0].strip() or type(error).__name__
