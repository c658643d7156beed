"""llmux: one OpenAI-compatible endpoint in front of many models that share the GPUs."""

__version__ = "0.1.0"
