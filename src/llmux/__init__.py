"""llmux: one OpenAI-compatible endpoint in front of many models that share the GPUs."""

__version__ = "0.1.0"


def how_built() -> str:
    """``compiled`` where the modules on the path of a request are native code (see hatch_build.py), else ``plain``."""
    from importlib.util import find_spec

    spec = find_spec("llmux.core.scheduler")
    return "plain" if spec is None or spec.origin is None or spec.origin.endswith(".py") else "compiled"
