"""A worker for vLLM's CPU build, loaded by vLLM itself, that can release its KV cache alone.

The plugin for tests gives the CPU build a sleep, but not what ``/release_kv_cache_memory`` asks of a worker, which the
CPU build refuses.
"""

from collections.abc import Collection

from vllm_cpu_sleep.worker import SleepyCPUWorker, _trim


class ReleasingWorker(SleepyCPUWorker):
    """Takes its KV cache back by the plugin's ``wake_up``."""

    def discard(self, tags: Collection[str]) -> None:
        assert set(tags) == {"kv_cache"}, tags
        freed = self.__dict__.setdefault("_freed", {})
        freed["kv_cache"] = [(storage, storage.nbytes()) for storage in self._kv_storages()]
        for storage, _ in freed["kv_cache"]:
            storage.resize_(0)
        _trim()
