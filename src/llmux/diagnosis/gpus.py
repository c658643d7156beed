"""The GPUs: the driver, its modes, and who else uses them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmux.config.settings import Settings
from llmux.core.eviction import Process
from llmux.core.identifiers import VISIBLE_GPUS
from llmux.diagnosis.findings import Finding, error, ok, unknown, warning
from llmux.engines.files import exists
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
MPS_DIRECTORY = ("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
"""The variable that says where CUDA programs look for a daemon of NVIDIA's MPS, and its default."""


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


def check_gpus(
    found: Gpus | GpusUnreadable, settings: Settings | None, environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
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
    yield from _visible(found.gpus, settings, environment)
    yield from _mps(settings, environment)


def _no_gpu(reason: GpusUnreadable, settings: Settings | None) -> Finding:
    what = "GPUs"
    if settings is not None and settings.places_by_memory and not settings.gpus:
        return error(what, str(reason), "declare them: gpus: [{memory: 24GiB}], or install the driver")
    remedy = "with an NVIDIA GPU, install its driver, and start containers with --gpus all"
    return unknown(what, str(reason), remedy)


def _driver(version: str, settings: Settings | None) -> Finding:
    major = int(version.partition(".")[0]) if version.partition(".")[0].isdecimal() else 0
    can_suspend = major >= LEAST_DRIVER_FOR_SUSPEND
    if _suspends(settings) and not can_suspend:
        remedy = f"update it to {LEAST_DRIVER_FOR_SUSPEND} or later, or use keep_running or stop"
        return error("driver", f"{version} cannot suspend engines that use NVML, as those of PyTorch do", remedy)
    if not can_suspend:
        return ok("driver", f"{version}; suspending CUDA processes needs {LEAST_DRIVER_FOR_SUSPEND} or later")
    return ok("driver", f"{version}, which can suspend CUDA processes")


def _suspends(settings: Settings | None) -> bool:
    processes = () if settings is None else (settings.eviction_of(name).process for name in settings.models)
    return any(process in (Process.CUDA_SUSPEND, Process.CHECKPOINT) for process in processes)


def _visible(gpus: Sequence[Gpu], settings: Settings | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """What CUDA_VISIBLE_DEVICES hides, of llmux's environment and of each model's."""
    places: dict[str, str | None] = {VISIBLE_GPUS: environment.get(VISIBLE_GPUS)}
    for name, model in () if settings is None else settings.models.items():
        places[f"models.{name}.env.{VISIBLE_GPUS}"] = model.env.get(VISIBLE_GPUS)
    for what, value in places.items():
        if value is None:
            continue
        wrong = next((one for one in map(str.strip, value.split(",")) if not _names_a_gpu(one, gpus)), None)
        if wrong is None:
            yield ok(what, value)
        else:
            found = f"{value!r}: {wrong!r} names no GPU here, and CUDA ignores it and all that follow"
            yield warning(what, found, "correct it: 'nvidia-smi -L' lists the GPUs; or unset it")


def _names_a_gpu(entry: str, gpus: Sequence[Gpu]) -> bool:
    if entry.isdecimal():
        return int(entry) < len(gpus)
    # Parts of a GPU are not read.
    return entry.startswith("MIG-") or (entry.startswith("GPU-") and any(one.uuid.startswith(entry) for one in gpus))


def _mps(settings: Settings | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    variable, default = MPS_DIRECTORY
    socket = Path(environment.get(variable) or default, "control")
    if _suspends(settings) and exists(socket):
        found = f"its daemon has {socket}: CUDA processes that use MPS cannot be suspended"
        yield warning("MPS", found, "'echo quit | nvidia-cuda-mps-control' ends it; or use keep_running or stop")


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
