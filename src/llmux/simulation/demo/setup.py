"""What the demo runs: three models on a virtual GPU that holds one of them, and random clients."""

import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmux.config.settings import Settings
from llmux.errors import LlmuxError
from llmux.simulation.ledger import Ledger
from llmux.simulation.traffic import RequestKind, TrafficRequest

ENGINE_PROGRAM = "llmux-sim-engine"
CAPACITY_MIB = 24 << 10
ASLEEP_MIB = 1 << 10
FIRST_TOKEN_SECONDS = 0.06
TOKEN_SECONDS = 0.02
MIN_ACTIVE_SECONDS = 1.0

REQUESTS_PER_SECOND = 9.0
KIND_SHARES = {RequestKind.CHAT_STREAM: 0.6, RequestKind.CHAT: 0.25, RequestKind.COMPLETION: 0.15}
LEAVING_SHARE = 0.12
"""Of the clients that disconnect early, which llmux must survive too."""
PATIENCE_SECONDS = (0.1, 1.5)
OUTPUT_TOKENS = (8, 48)
SUBJECTS = ("the tide", "a lighthouse", "rust on iron", "two trains", "a prime number", "old maps", "the north wind")


class EngineMissing(LlmuxError):
    """The simulated engine's program is not installed."""

    def __init__(self) -> None:
        super().__init__(
            f"the program {ENGINE_PROGRAM} is neither beside {sys.executable} nor on PATH; it comes with llmux: "
            "install llmux with pip, in place of only putting its source on PYTHONPATH"
        )


@dataclass(frozen=True, slots=True)
class DemoModel:
    """One model: its share of the traffic, and the behaviour of its engine."""

    name: str
    eviction: str
    share: float
    memory_mib: int
    start_seconds: float
    sleep_seconds: float = 0.0
    wake_seconds: float = 0.0
    reload_seconds: float = 0.0
    stop_seconds: float = 0.0


MODELS = (
    DemoModel("llama", "offload+keep_running", 0.45, 20 << 10, 0.7, sleep_seconds=0.2, wake_seconds=0.35),
    DemoModel(
        "qwen", "discard+keep_running", 0.35, 18 << 10, 0.7, sleep_seconds=0.1, wake_seconds=0.1, reload_seconds=0.4
    ),
    DemoModel("coder", "retain+stop", 0.2, 21 << 10, 0.9, stop_seconds=0.1),
)
"""Each leaves the GPU in another way. With the residue of sleeping ones, no two of them fit at the same time."""


@dataclass(frozen=True, slots=True)
class DemoSetup:
    """The server's settings and the virtual GPU of its engines."""

    settings: Settings
    ledger: Ledger


def build_setup(directory: Path, port: int = 0) -> DemoSetup:
    """Create the virtual GPU in this directory, and settings that use it; raises EngineMissing."""
    ledger = Ledger(directory / "gpu.json").create(CAPACITY_MIB)
    settings = Settings.model_validate(
        {
            "models": {model.name: _model_settings(model, ledger) for model in MODELS},
            "vllm_command": find_engine(),
            "port": port,
            "metrics_port": 0,
            "policy": {"policy_type": "fifo", "min_active_seconds": MIN_ACTIVE_SECONDS, "max_wait_seconds": 10.0},
            "start_timeout_seconds": 30.0,
            "shutdown_timeout_seconds": 2.0,
            "stop_timeout_seconds": 2.0,
        }
    )
    return DemoSetup(settings, ledger)


def find_engine() -> str:
    """The path of the simulated engine's program; raises EngineMissing."""
    beside = Path(sys.executable).with_name(ENGINE_PROGRAM)
    found = str(beside) if beside.is_file() else shutil.which(ENGINE_PROGRAM)
    if found is None:
        raise EngineMissing
    return found


def demo_traffic(seed: int, seconds: float) -> Iterator[TrafficRequest]:
    """Requests in order of arrival for this long, each with another prompt; the same for the same seed."""
    chance = random.Random(seed)
    names = [model.name for model in MODELS]
    shares = [model.share for model in MODELS]
    kinds, kind_shares = list(KIND_SHARES), list(KIND_SHARES.values())
    at_seconds, number = 0.0, 0
    while at_seconds < seconds:
        number += 1
        model = chance.choices(names, shares)[0]
        kind = chance.choices(kinds, kind_shares)[0]
        prompt = f"Question {number}: what do you say about {chance.choice(SUBJECTS)}?"
        output_tokens = chance.randint(*OUTPUT_TOKENS)
        patience_seconds = chance.uniform(*PATIENCE_SECONDS) if chance.random() < LEAVING_SHARE else None
        yield TrafficRequest(
            at_seconds, model, len(prompt.split()), output_tokens, kind, prompt, patience_seconds=patience_seconds
        )
        at_seconds += chance.expovariate(REQUESTS_PER_SECOND)


def _model_settings(model: DemoModel, ledger: Ledger) -> dict[str, Any]:
    flags: dict[str, object] = {
        "--latency-ms": FIRST_TOKEN_SECONDS * 1000,
        "--token-ms": TOKEN_SECONDS * 1000,
        "--startup-delay-ms": model.start_seconds * 1000,
        "--sim-gpu-ledger": ledger.path,
        "--sim-gpu-memory": model.memory_mib,
        "--sim-residue": ASLEEP_MIB,
        "--sim-sleep-ms": model.sleep_seconds * 1000,
        "--sim-wake-ms": model.wake_seconds * 1000,
        "--sim-reload-ms": model.reload_seconds * 1000,
        "--sim-stop-delay-ms": model.stop_seconds * 1000,
    }
    words = [word for flag, value in flags.items() for word in (flag, str(value))]
    return {"model_path": f"simulated/{model.name}", "eviction": model.eviction, "extra_args": words}
