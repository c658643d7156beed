"""The GPUs: the driver, its modes, and who else uses them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmux.config.settings import Settings
from llmux.core.eviction import Process
from llmux.diagnosis.findings import Finding, error, ok, unknown, warning
from llmux.errors import GpusUnreadable
from llmux.gpus import nvml
from llmux.gpus.memory import GpuProcess

LEAST_DRIVER_FOR_SUSPEND = 570
"""The first whose checkpoints of CUDA processes work with NVML in use, as in PyTorch."""
EXCLUSIVE, PROHIBITED = 3, 2
"""NVML's compute modes."""
FREE_SHARE = 0.9
"""Less than that is free: somebody else's memory would be in the way of a model that takes all of the GPU."""
PROCESSES_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML tells it. None where this GPU has no such thing."""

    name: str
    uuid: str
    total_mib: int
    free_mib: int
    compute_mode: int
    is_split: bool | None
    """Whether MIG divides it."""
    is_persistent: bool | None
    """Whether the driver stays loaded while nobody uses it."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """What NVML says."""

    driver: str
    gpus: tuple[Gpu, ...]
    processes: tuple[GpuProcess, ...]


def read_gpus() -> Gpus:
    """Ask NVML; raises GpusUnreadable."""
    with nvml.library() as library:
        handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
        driver = str(library.nvmlSystemGetDriverVersion())
        gpus = tuple(_read(library, handle) for handle in handles)
    return Gpus(driver, gpus, nvml.NvmlReader({}).read_processes())


def check_gpus(found: Gpus | GpusUnreadable, settings: Settings | None) -> Iterator[Finding]:
    """Whether the GPUs can do what is configured."""
    if isinstance(found, GpusUnreadable):
        yield _no_gpu(found, settings)
        return
    if not found.gpus:
        yield _no_gpu(GpusUnreadable("the driver knows of none"), settings)
        return
    yield _driver(found.driver, settings)
    for index, gpu in enumerate(found.gpus):
        yield from _gpu(f"GPU {index}", gpu)
    yield _others(found.processes)


def _no_gpu(reason: GpusUnreadable, settings: Settings | None) -> Finding:
    what = "GPUs"
    if settings is not None and settings.places_by_memory and not settings.gpus:
        return error(what, str(reason), "declare them: gpus: [{memory: 24GiB}], or install the driver")
    remedy = "with an NVIDIA GPU, install its driver, and start containers with --gpus all"
    return unknown(what, str(reason), remedy)


def _driver(version: str, settings: Settings | None) -> Finding:
    suspends = settings is not None and any(
        settings.eviction_of(name).process in (Process.CUDA_SUSPEND, Process.CHECKPOINT) for name in settings.models
    )
    major = int(version.partition(".")[0]) if version.partition(".")[0].isdecimal() else 0
    if suspends and major < LEAST_DRIVER_FOR_SUSPEND:
        remedy = f"update it to {LEAST_DRIVER_FOR_SUSPEND} or later, or use keep_running or stop"
        return error("driver", f"{version} cannot suspend engines that use NVML, as those of PyTorch do", remedy)
    return ok("driver", version)


def _gpu(what: str, gpu: Gpu) -> Iterator[Finding]:
    size = f"{gpu.name}, {gpu.free_mib} of {gpu.total_mib} MiB free"
    if gpu.compute_mode in (EXCLUSIVE, PROHIBITED):
        mode = "exclusive" if gpu.compute_mode == EXCLUSIVE else "prohibited"
        remedy = "nvidia-smi -c DEFAULT"
        yield error(what, f"{size}; its compute mode is {mode}: a sleeping engine would keep all others off it", remedy)
    elif gpu.free_mib < gpu.total_mib * FREE_SHARE:
        remedy = "end what uses it, or declare what llmux may use, with gpus and gpu_memory"
        yield warning(what, size, remedy)
    else:
        yield ok(what, size)
    if gpu.is_split:
        remedy = "use other evictions for models on it, or nvidia-smi -mig 0"
        yield warning(what, "is divided by MIG, under which CUDA processes cannot be suspended", remedy)
    if gpu.is_persistent is False:
        yield warning(
            what, "the driver is unloaded while nobody uses it, so that starts take longer", "nvidia-smi -pm 1"
        )


def _others(processes: Sequence[GpuProcess]) -> Finding:
    if not processes:
        return ok("GPU processes", "none")
    shown = ", ".join(map(str, processes[:PROCESSES_SHOWN]))
    more = f" and {len(processes) - PROCESSES_SHOWN} more" if len(processes) > PROCESSES_SHOWN else ""
    remedy = "if they are not llmux's engines, end them, or leave room for them with gpu_memory"
    return warning("GPU processes", f"{shown}{more}", remedy)


def _read(library: Any, handle: Any) -> Gpu:
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        name=str(library.nvmlDeviceGetName(handle)),
        uuid=str(library.nvmlDeviceGetUUID(handle)),
        total_mib=memory.total >> 20,
        free_mib=memory.free >> 20,
        compute_mode=library.nvmlDeviceGetComputeMode(handle),
        is_split=_optional(library, lambda: bool(library.nvmlDeviceGetMigMode(handle)[0])),
        is_persistent=_optional(library, lambda: bool(library.nvmlDeviceGetPersistenceMode(handle))),
    )


def _optional(library: Any, ask: Any) -> bool | None:
    try:
        return bool(ask())
    except library.NVMLError:
        return None
