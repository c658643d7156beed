"""Engines as the configuration would make them."""

from typing import Any

from llmux.engines.base import EngineOptions
from llmux.engines.sglang import Sglang
from llmux.engines.vllm import Vllm


def vllm_engine(name: str = "m", *extra_args: str, **options: Any) -> Vllm:
    """A vLLM engine of the model ``name``."""
    return Vllm(_options(name, extra_args, {"program": "vllm"} | options))


def sglang_engine(name: str = "m", *extra_args: str, **options: Any) -> Sglang:
    """An SGLang engine of the model ``name``."""
    return Sglang(_options(name, extra_args, {"program": "python3"} | options))


def _options(name: str, extra_args: tuple[str, ...], given: dict[str, Any]) -> EngineOptions:
    return EngineOptions(name=name, extra_args=extra_args, **({"model_path": name} | given))
