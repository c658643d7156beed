"""NVIDIA's GPUs, read through NVML, the library that comes with their driver."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import psutil

from llmux.errors import GpusUnreadable
from llmux.gpus.memory import MIB, GpuMemory, Holder

VISIBLE = "CUDA_VISIBLE_DEVICES"


class NvmlReader:
    """The first ``count`` of the GPUs that an engine with this environment sees; without a count all of them."""

    def __init__(self, environment: Mapping[str, str] = os.environ, count: int | None = None) -> None:
        self._visible = environment.get(VISIBLE)
        self._count = count

    def read_memory(self) -> tuple[GpuMemory, ...]:
        """Each GPU's memory; raises GpusUnreadable."""
        with _library() as nvml:
            return tuple(_read(nvml, handle) for handle in self._handles(nvml))

    def read_holders(self) -> tuple[Holder, ...]:
        """The processes on these GPUs, the largest first; raises GpusUnreadable."""
        held: dict[int, int | None] = {}
        with _library() as nvml:
            for handle in self._handles(nvml):
                for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                    more, so_far = process.usedGpuMemory, held.get(process.pid, 0)
                    held[process.pid] = None if more is None or so_far is None else so_far + more // MIB
        found = [Holder(pid, _name(pid), mib) for pid, mib in held.items()]
        return tuple(sorted(found, key=lambda holder: -(holder.mib or 0)))

    def _handles(self, nvml: Any) -> list[Any]:
        names = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        if self._visible is not None:
            uuids = {str(nvml.nvmlDeviceGetUUID(handle)): handle for handle in names}
            names = list(_chosen(self._visible, names, uuids))
        return names[: self._count]


def _chosen(visible: str, handles: list[Any], uuids: Mapping[str, Any]) -> Iterator[Any]:
    """As CUDA reads the variable: by number or by the beginning of a UUID, up to the first that does not exist."""
    for word in visible.split(","):
        name = word.strip()
        found = [handle for uuid, handle in uuids.items() if name.startswith("GPU-") and uuid.startswith(name)]
        if name.isdecimal() and int(name) < len(handles):
            found = [handles[int(name)]]
        if not found:
            return
        yield found[0]


@contextmanager
def _library() -> Iterator[Any]:
    """NVML, ready for calls; what goes wrong within becomes GpusUnreadable."""
    nvml = _load()
    try:
        yield nvml
    except nvml.NVMLError as error:
        raise GpusUnreadable(f"NVML says: {error}") from error


@cache
def _load() -> Any:
    # Only now: most commands never look at a GPU.
    try:
        import pynvml
    except ImportError as error:
        raise GpusUnreadable("the package nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise GpusUnreadable(f"NVML says: {error}") from error
    return pynvml


def _read(nvml: Any, handle: Any) -> GpuMemory:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    # Not its "used": what the driver reserves is not free either.
    used_bytes = memory.total - memory.free
    return GpuMemory(str(nvml.nvmlDeviceGetUUID(handle)), memory.total // MIB, used_bytes // MIB)


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "unknown"
