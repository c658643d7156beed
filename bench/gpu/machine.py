"""What the machine of a check is and can do: its GPU, programs and versions, and which evictions are possible on it."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

import llmux
from llmux.checkpoints.criu import inspect_criu
from llmux.core.eviction import Eviction, Process, Weights
from llmux.errors import CriuUnusable, GpusUnreadable
from llmux.gpus.memory import MIB
from llmux.gpus.nvml import NvmlReader

ENGINE = Path(__file__).with_name("engine.py")
PLUGINS = Path("/usr/lib/criu")
PLUGIN = "cuda_plugin.so"
FACTS_LIMIT_SECONDS = 120.0
"""Importing PyTorch from a cold disk takes half a minute and more."""
DRIVER_MIN = 570
"""The first with checkpoint calls in the driver's API, with time limits for locks, and for processes that use NVML."""


class NoGpu(Exception):
    """Why there is nothing to check on this machine."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine; what is None is not there, or does not tell."""

    device: str
    gpu: str | None
    gpu_mib: int | None
    driver: str | None
    driver_cuda: str | None
    torch: str
    torch_cuda: str | None
    engine_python: str
    python: str
    kernel: str
    cpus: int
    host_mib: int
    criu: str | None
    criu_refusal: str | None
    cuda_plugin: bool
    cuda_checkpoint: str | None
    cuda_bindings: bool
    llmux: str

    @property
    def is_gpu(self) -> bool:
        """Whether the check is one of a GPU."""
        return self.device != "cpu"

    def as_data(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def why_not_suspend(self) -> str | None:
        """Why no CUDA process can be suspended here; None if that should work."""
        if not self.is_gpu:
            return "needs an NVIDIA GPU"
        major = int(self.driver.split(".")[0]) if self.driver else 0
        if major < DRIVER_MIN:
            return f"needs driver {DRIVER_MIN} or later, and this is {self.driver}"
        if not self.cuda_bindings and self.cuda_checkpoint is None:
            return "neither the Python package cuda-bindings nor the program cuda-checkpoint is here"
        return None

    def why_not(self, eviction: Eviction) -> str | None:
        """Why an eviction cannot be shown here; None if it should work."""
        match eviction:
            case Eviction(Weights.RETAIN, Process.KEEP_RUNNING):
                return "is no eviction: nothing leaves the GPU"
            case Eviction(Weights.OFFLOAD | Weights.DISCARD, Process.STOP):
                return "does the same as retain+stop"
            case Eviction(_, Process.CUDA_SUSPEND):
                return self.why_not_suspend()
            case Eviction(_, Process.CHECKPOINT):
                if self.criu_refusal is not None:
                    return self.criu_refusal
                if self.is_gpu and not self.cuda_plugin and (reason := self.why_not_suspend()):
                    return f"criu's CUDA plugin ({PLUGINS / PLUGIN}) is not here, and without it: {reason}"
                return None
            case _:
                return None


def every_eviction() -> Iterator[Eviction]:
    """All twelve; within a process, offload comes last, because PyTorch keeps what it has pinned."""
    for process in (Process.KEEP_RUNNING, Process.CUDA_SUSPEND, Process.CHECKPOINT, Process.STOP):
        for weights in (Weights.RETAIN, Weights.DISCARD, Weights.OFFLOAD):
            yield Eviction(weights, process)


def inspect(device: str, engine_python: str, criu: str) -> Machine:
    """Look at this machine; raises NoGpu if the check cannot be made on it."""
    facts = torch_facts(engine_python)
    gpu_mib, driver, driver_cuda = (None, None, None) if device == "cpu" else nvml_facts()
    if device != "cpu" and facts["gpu"] is None:
        raise NoGpu(f"PyTorch {facts['torch']} of {engine_python} sees no GPU (torch.cuda.is_available() is False)")
    try:
        criu_version, refusal = inspect_criu(criu, None).version, None
    except CriuUnusable as error:
        criu_version, refusal = None, str(error)
    return Machine(
        device=device,
        gpu=facts["gpu"],
        gpu_mib=gpu_mib,
        driver=driver,
        driver_cuda=driver_cuda,
        torch=str(facts["torch"]),
        torch_cuda=facts["cuda"],
        engine_python=str(facts["python"]),
        python=platform.python_version(),
        kernel=platform.release(),
        cpus=len(os.sched_getaffinity(0)),
        host_mib=psutil.virtual_memory().total // MIB,
        criu=criu_version,
        criu_refusal=refusal,
        cuda_plugin=(PLUGINS / PLUGIN).exists(),
        cuda_checkpoint=shutil.which("cuda-checkpoint"),
        cuda_bindings=has_cuda_bindings(),
        llmux=llmux.__version__,
    )


def has_cuda_bindings() -> bool:
    """Whether this Python has the driver's API."""
    try:
        return find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        return False


def torch_facts(engine_python: str) -> dict[str, str | None]:
    """What PyTorch says of itself and the GPU; raises NoGpu if it is not there."""
    command = (engine_python, str(ENGINE), "facts")
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=FACTS_LIMIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoGpu(f"{engine_python} cannot be run: {error}") from error
    if process.returncode != 0:
        reason = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise NoGpu(f"{engine_python} has no PyTorch ({reason[0]}); name one that has it with --engine-python")
    facts: dict[str, str | None] = json.loads(process.stdout.splitlines()[-1])
    return facts


def nvml_facts() -> tuple[int, str, str]:
    """MiB of the first visible GPU, the driver's version and its CUDA version; raises NoGpu."""
    import pynvml

    try:
        memory = NvmlReader(count=1).read_memory()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
    except (GpusUnreadable, pynvml.NVMLError) as error:
        raise NoGpu(f"no NVIDIA GPU can be read: {error}") from error
    if not memory:
        raise NoGpu("NVML shows no GPU that CUDA_VISIBLE_DEVICES leaves visible")
    return memory[0].total_mib, driver, f"{cuda // 1000}.{cuda % 1000 // 10}"
