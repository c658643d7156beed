"""NVML as far as llmux uses it, without a driver: a module in the place of ``pynvml``."""

import os
from dataclasses import dataclass, field
from types import SimpleNamespace

MIB = 1 << 20


class NVMLError(Exception):
    """As the real one."""


@dataclass
class FakeGpu:
    """One GPU; sizes in MiB. ``processes``: what each pid holds, None where the driver does not say."""

    uuid: str
    total_mib: int = 1000
    used_mib: int = 0
    name: str = "NVIDIA Imaginary"
    processes: dict[int, int | None] = field(default_factory=dict)
    reserved_mib: int | None = 0
    """What the driver keeps for itself; None: it is too old to tell."""
    graphics_mib: int | None = None
    """What a desktop holds; None: the driver does not say."""
    is_divided: bool | None = None
    """Whether it is divided into instances; None: it cannot be."""


class FakeNvml:
    """The functions that are called, over some GPUs; ``failure`` makes all of them fail."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 2

    def __init__(self, *gpus: FakeGpu, failure: str = "") -> None:
        self.gpus = gpus
        self.failure = failure

    def nvmlInit(self) -> None:
        if self.failure:
            raise NVMLError(self.failure)

    def nvmlDeviceGetCount(self) -> int:
        self.nvmlInit()
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        return gpu.name

    def nvmlDeviceGetIndex(self, gpu: FakeGpu) -> int:
        return self.gpus.index(gpu)

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> list[int]:
        if gpu.is_divided is None:
            raise NVMLError("Not Supported")
        return [int(gpu.is_divided), 0]

    def nvmlDeviceGetGraphicsRunningProcesses(self, gpu: FakeGpu) -> list[SimpleNamespace]:
        if gpu.graphics_mib is None:
            raise NVMLError("Not Supported")
        return [
            SimpleNamespace(pid=1, usedGpuMemory=gpu.graphics_mib * MIB),
            SimpleNamespace(pid=2, usedGpuMemory=None),
        ]

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu, version: int | None = None) -> SimpleNamespace:
        if version is not None and gpu.reserved_mib is None:
            raise NVMLError("Function Not Found")
        reserved = {} if version is None else {"reserved": (gpu.reserved_mib or 0) * MIB}
        return SimpleNamespace(total=gpu.total_mib * MIB, free=(gpu.total_mib - gpu.used_mib) * MIB, used=0, **reserved)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(pid=pid or os.getpid(), usedGpuMemory=None if mib is None else mib * MIB)
            for pid, mib in gpu.processes.items()
        ]
