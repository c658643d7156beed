"""NVIDIA GPUs, read through NVML, the library that comes with the driver."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import psutil

from llmux.core.identifiers import VISIBLE_GPUS
from llmux.errors import GpusUnreadable
from llmux.gpus.memory import MIB, GpuMemory, GpuProcess


class NvmlReader:
    """Reads the GPUs visible to an engine with this environment; only the first ``count`` of them, if given."""

    def __init__(self, environment: Mapping[str, str] = os.environ, count: int | None = None) -> None:
        self._visible = environment.get(VISIBLE_GPUS)
        self._count = count

    def read_memory(self) -> tuple[GpuMemory, ...]:
        with library() as nvml:
            return tuple(_read(nvml, handle) for handle in self.handles(nvml))

    def read_processes(self) -> tuple[GpuProcess, ...]:
        found = []
        with library() as nvml:
            for handle in self.handles(nvml):
                gpu = str(nvml.nvmlDeviceGetUUID(handle))
                for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                    mib = None if process.usedGpuMemory is None else process.usedGpuMemory // MIB
                    found.append(GpuProcess(process.pid, _name(process.pid), mib, gpu))
        return tuple(sorted(found, key=lambda process: -(process.mib or 0)))

    def handles(self, nvml: Any) -> list[Any]:
        """The GPUs as the initialised library names them; raises its errors."""
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        if self._visible is not None:
            by_uuid = {str(nvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
            handles = list(_select(self._visible, handles, by_uuid))
        return handles[: self._count]


def usable_memory(environment: Mapping[str, str] = os.environ) -> Mapping[str, int]:
    """What engines can have of each GPU that llmux sees, in MiB, by its number. Raises GpusUnreadable.

    Numbers are what CUDA_VISIBLE_DEVICES must hold: not every engine starts with a UUID there.
    """
    found: dict[str, int] = {}
    with library() as nvml:
        for handle in NvmlReader(environment).handles(nvml):
            number = str(nvml.nvmlDeviceGetIndex(handle))
            if _is_divided(nvml, handle):
                raise GpusUnreadable(f"GPU {number} is divided into instances (MIG), which llmux does not know")
            used_bytes = _reserved_bytes(nvml, handle) + _graphics_bytes(nvml, handle)
            found[number] = (nvml.nvmlDeviceGetMemoryInfo(handle).total - used_bytes) // MIB
    return found


def _is_divided(nvml: Any, handle: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False  # Most GPUs cannot be.
    return bool(current)


def _reserved_bytes(nvml: Any, handle: Any) -> int:
    """What the driver keeps for itself: some hundred MiB, in the total. Drivers before 510 do not tell."""
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).reserved)
    except nvml.NVMLError:
        return 0


def _graphics_bytes(nvml: Any, handle: Any) -> int:
    """What a desktop holds of the GPU to which a screen is connected."""
    try:
        processes = nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)
    except nvml.NVMLError:
        return 0
    return sum(process.usedGpuMemory or 0 for process in processes)


def gpu_models() -> str:
    """The models of this machine's GPUs, each once; empty if they cannot be read."""
    try:
        with library() as nvml:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            return ", ".join(sorted({str(nvml.nvmlDeviceGetName(handle)) for handle in handles}))
    except GpusUnreadable:
        return ""


def _select(visible: str, handles: list[Any], by_uuid: Mapping[str, Any]) -> Iterator[Any]:
    """Interpret CUDA_VISIBLE_DEVICES as CUDA does: indices or prefixes of UUIDs, ended by the first invalid entry."""
    for entry in visible.split(","):
        name = entry.strip()
        found = [handle for uuid, handle in by_uuid.items() if name.startswith("GPU-") and uuid.startswith(name)]
        if name.isdecimal() and int(name) < len(handles):
            found = [handles[int(name)]]
        if not found:
            return
        yield found[0]


@contextmanager
def library() -> Iterator[Any]:
    """The initialised library; NVML errors within the block are raised as GpusUnreadable."""
    nvml = _load()
    try:
        yield nvml
    except nvml.NVMLError as error:
        raise GpusUnreadable(f"NVML says: {error}") from error


@cache
def _load() -> Any:
    # Imported on first use: most commands never read a GPU.
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
    # Not NVML's "used", which leaves out the memory that the driver reserves and no engine can allocate.
    used_bytes = memory.total - memory.free
    uuid, model = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    return GpuMemory(str(uuid), memory.total // MIB, used_bytes // MIB, str(model))


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "unknown"
