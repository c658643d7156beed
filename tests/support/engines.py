"""Engines as the configuration would make them."""

from typing import Any

from llmux.engines.base import EngineOptions
from llmux.engines.vllm import Vllm


def vllm_engine(name: str = "m", *extra_args: str, **options: Any) -> Vllm:
    """A vLLM engine of the model ``name``."""
    given = {"model_path": name, "program": "vllm"} | options
    return Vllm(EngineOptions(name=name, extra_args=extra_args, **given))
