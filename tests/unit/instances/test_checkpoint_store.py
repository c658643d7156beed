"""Which images of a model are used again, and which are deleted, over a checkpointer that does as it is told."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmux.core.eviction import Eviction
from llmux.errors import CriuUnusable, ImageUnusable, RestoreFailed
from llmux.instances.checkpoint_store import CheckpointStore

EVICTION = Eviction.parse("offload+checkpoint")
IMAGE = Path("/images/m/images")


@dataclass(slots=True)
class ScriptedCheckpointer:
    """Has one image, which cannot be restored if there is a ``failure``."""

    failure: Exception | None = None
    deleted: list[Path] = field(default_factory=list)
    before_delete: Callable[[], Awaitable[object]] | None = None
    """Done while a deletion waits for its turn."""

    def image_path(self, model: str, *, frozen: bool = False) -> Path:
        return IMAGE.with_name("frozen" if frozen else "images")

    def read(self, path: Path) -> Any:
        return SimpleNamespace(
            fingerprint="f", eviction=str(EVICTION), canary=None, has_frozen=False, size_bytes=0, steps=(), gpus=None
        )

    async def dump(self, process: object, facts: object) -> Any:
        return self.read(IMAGE)

    async def restore(self, path: Path, run_criu: object) -> Any:
        if self.failure is not None:
            raise self.failure
        return object(), self.read(path)

    async def delete(self, path: Path, unless: Callable[[], bool]) -> None:
        if self.before_delete is not None:
            await self.before_delete()
        if not unless():
            self.deleted.append(path)


def store_over(checkpointer: ScriptedCheckpointer) -> CheckpointStore:
    return CheckpointStore(checkpointer, "m", keep=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("failure", "is_used_again"),
    [
        (RestoreFailed("its port is taken", is_passing=True), True),
        (OSError(24, "Too many open files"), True),
        (CriuUnusable("another process has held the lock"), True),
        (RestoreFailed("criu ended with exit code 1"), False),
        (ImageUnusable(IMAGE, "a file has another size"), False),
    ],
)
async def test_an_image_is_distrusted_only_for_a_failure_of_its_own(failure: Exception, is_used_again: bool) -> None:
    store = store_over(ScriptedCheckpointer(failure))
    store.set_current(IMAGE)
    with pytest.raises(type(failure)):
        await store.restore("f", on_line=lambda stream, line: None, on_exit=lambda status: None)
    assert not store.holds_engine
    assert (await store.find_reusable("f", EVICTION, None) == IMAGE) is is_used_again


async def test_an_image_that_the_engine_is_dumped_into_meanwhile_is_not_deleted() -> None:
    checkpointer = ScriptedCheckpointer()
    store = store_over(checkpointer)
    facts: Any = SimpleNamespace(has_frozen=False)
    checkpointer.before_delete = lambda: store.dump(object(), facts)  # type: ignore[arg-type]
    await store.delete_all()
    assert checkpointer.deleted == [IMAGE.with_name("frozen")]
    assert store.holds_engine


async def test_the_files_of_an_image_count_only_while_the_engine_is_in_it(tmp_path: Path) -> None:
    store = store_over(ScriptedCheckpointer())
    (tmp_path / "shm").mkdir()
    for name in ("pages-1.img", "shm/segment"):
        (tmp_path / name).write_bytes(b"x")
    assert list(store.files_of_engine()) == []
    store.set_current(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in store.files_of_engine()] == ["pages-1.img", "shm/segment"]
    store.set_current(tmp_path / "gone")
    assert list(store.files_of_engine()) == []
