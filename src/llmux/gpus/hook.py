"""A hook that replaces NVML: ``LLMUX_GPU_READER=module:function`` names a function that reads an engine's GPUs.

llmux reads NVIDIA GPUs by itself. With the variable set, the function is asked first, for each engine; that is how the
demo, the benches and the tests give simulated engines a virtual GPU, and how GPUs without NVML can be supported.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeAlias

from llmux.errors import LlmuxError
from llmux.gpus.memory import GpuReader, StartNeed

VARIABLE = "LLMUX_GPU_READER"

FindGpus: TypeAlias = Callable[[Sequence[str], Mapping[str, str]], tuple[GpuReader, StartNeed | None] | None]
"""Called with an engine's arguments and environment. Returns a reader of its GPUs and what it needs to start (None if
unknown), or None for an engine whose GPUs NVML shall read. Without arguments it is asked for llmux's own GPUs."""


class GpuHookUnusable(LlmuxError):
    """The variable does not name a function that can be imported."""

    def __init__(self, value: str, reason: str) -> None:
        super().__init__(
            f"{VARIABLE}={value}: {reason}; set it to module:function with a module that this Python can import, "
            "or unset it to read GPU memory through NVML"
        )


def load_gpu_hook(environment: Mapping[str, str] = os.environ) -> FindGpus | None:
    """The function that the variable names, or None if it is not set; raises GpuHookUnusable."""
    value = environment.get(VARIABLE, "")
    if not value:
        return None
    module_name, separator, name = value.partition(":")
    if not separator or not module_name or not name:
        raise GpuHookUnusable(value, "this is not of the form module:function")
    try:
        module = import_module(module_name)
    except Exception as error:
        # Arbitrary code ran, so any exception is the module's, and the operator needs to see which.
        raise GpuHookUnusable(value, f"the import fails with {type(error).__name__}: {error}") from error
    function: Any = getattr(module, name, None)
    if function is None:
        raise GpuHookUnusable(value, f"the module {module_name} has no {name}")
    if not callable(function):
        raise GpuHookUnusable(value, f"{name} is not a function")
    found: FindGpus = function
    return found
