"""How large models are in a simulation: what sleepers hold of host memory, their next evictions, and their files."""

import os
from collections.abc import Mapping, Sequence

from llmux.config.settings import Settings
from llmux.core.eviction import Eviction, Process, Weights
from llmux.hosts.local import size_mib

PROCESS_MIB = 1024
"""Of an engine without its weights; 0.5 to 1 GB were seen of vLLM (docs/residency.md)."""


def steps_down(settings: Settings, name: str) -> Sequence[Eviction]:
    """The deeper evictions that the model may come to sleep by; none where nothing makes it go deeper."""
    if settings.host_memory_max is None and settings.policy.sleep_deeper_after_seconds is None:
        return ()
    own = settings.eviction_of(name)
    return tuple(step for step in settings.ladder_of(name) if step.depth > own.depth and step.keeps_process)


def host_memory(settings: Settings, name: str) -> Mapping[Eviction, int]:
    """An estimate in MiB for each eviction by which the model may sleep, of those for which there is one.

    Weights take what their files do or, where these are not local, what the model takes of the GPUs, which is more.
    Reads the disk.
    """
    evictions = (settings.eviction_of(name), *steps_down(settings, name))
    found = {eviction: _estimate(settings, name, eviction) for eviction in evictions}
    return {eviction: mib for eviction, mib in found.items() if mib is not None}


def file_bytes(settings: Settings, name: str) -> int:
    """An estimate of what the model's start reads: its files or, where these are not local, what it takes of the GPUs.

    0 where neither is known. Reads the disk.
    """
    engine = settings.engine_of(name)
    mib = size_mib(engine.files_to_load(os.environ | engine.options.environment))
    return (mib or engine.options.gpu_memory_mib * engine.gpu_count) << 20


def _estimate(settings: Settings, name: str, eviction: Eviction) -> int | None:
    engine = settings.engine_of(name)
    on_gpus = engine.options.gpu_memory_mib * engine.gpu_count
    match eviction:
        case Eviction(process=Process.CUDA_SUSPEND, weights=Weights.RETAIN):
            kept = on_gpus
        case Eviction(process=Process.KEEP_RUNNING | Process.CUDA_SUSPEND, weights=Weights.OFFLOAD):
            kept = size_mib(engine.weight_files()) or on_gpus
        case Eviction(process=Process.KEEP_RUNNING | Process.CUDA_SUSPEND):
            return PROCESS_MIB
        case _:
            return 0
    return kept + PROCESS_MIB if kept else None
