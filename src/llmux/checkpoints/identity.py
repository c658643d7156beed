"""What makes one engine another: a fingerprint of how it was started, by which an outdated image is recognised."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence

PLACES = frozenset({"TMPDIR", "VLLM_RPC_BASE_PATH"})
"""Different at every start."""
ENGINE_PREFIXES = (
    *("CUDA_", "FLASHINFER_", "HF_", "LD_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "PYTHON", "PYTORCH_", "TORCH"),
    *("TRANSFORMERS_", "TRITON_", "VLLM_"),
)


def identity_of(argv: Sequence[str], environment: Mapping[str, str], configured: Collection[str] = ()) -> str:
    """The fingerprint of an engine that is started so; ports and temporary directories do not count.

    Of the environment only what engines read by their names, and the variables configured for the model: the rest
    changes with every login.
    """
    variables = {
        name: value
        for name, value in environment.items()
        if name not in PLACES and (name in configured or name.startswith(ENGINE_PREFIXES))
    }
    text = json.dumps([without_port(argv), sorted(variables.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def without_port(argv: Sequence[str]) -> list[str]:
    """The arguments without the value of ``--port``."""
    return [
        "--port=" if word.startswith("--port=") else "" if index and argv[index - 1] == "--port" else word
        for index, word in enumerate(argv)
    ]
