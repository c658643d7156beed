"""Sets up a demo: the virtual GPU, the server's settings, and the command lines of the simulated engines."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from llmux.config.settings import Settings
from llmux.core.identifiers import VISIBLE_GPUS
from llmux.errors import LlmuxError
from llmux.simulation.demo.scenarios import CAPACITY_MIB, DemoModel, EmbeddingServer, ImageServer, Scenario, Vllm
from llmux.simulation.engine.kinds import VARIABLE as KIND_VARIABLE
from llmux.simulation.ledger import Ledger, visible_ledgers

ENGINE_PROGRAM = "llmux-sim-engine"
FIRST_TOKEN_SECONDS = 0.06
TOKEN_SECONDS = 0.02
MIN_ACTIVE_SECONDS = 1.0
COMFYUI_PROGRAM = "from llmux.simulation.engine.main import main\n\nmain()\n"
"""The ``main.py`` of the simulated ComfyUI, which is started as llmux's own description of ComfyUI says."""


class EngineMissing(LlmuxError):
    """The simulated engine's program is not installed."""

    def __init__(self) -> None:
        super().__init__(
            f"the program {ENGINE_PROGRAM} is neither beside {sys.executable} nor on PATH; it comes with llmux: "
            "install llmux with pip, in place of only putting its source on PYTHONPATH"
        )


@dataclass(frozen=True, slots=True)
class DemoSetup:
    """The server's settings, the virtual GPUs of its engines, and where pictures are written."""

    settings: Settings
    ledgers: tuple[Ledger, ...]
    pictures: Path


def build_setup(
    scenario: Scenario, directory: Path, port: int = 0, changes: Mapping[str, Any] | None = None
) -> DemoSetup:
    """Create the virtual GPUs in this directory, and settings that use them; raises EngineMissing.

    ``changes`` replaces top-level keys of the configuration.
    """
    place = _Place(find_engine(), directory, places_models=scenario.gpus > 1)
    ledgers = visible_ledgers(str(place.ledger), {VISIBLE_GPUS: ",".join(map(str, range(scenario.gpus)))})
    for ledger in ledgers:
        ledger.create(CAPACITY_MIB)
    place.pictures.mkdir(parents=True)
    (place.comfyui / "main.py").write_text(COMFYUI_PROGRAM)
    settings = Settings.model_validate(
        {
            "models": {model.name: _model_settings(model, place) for model in scenario.models},
            "vllm_command": place.engine_program,
            "port": port,
            "metrics_port": 0,
            "cache_dir": str(directory / "cache"),
            "policy": {"policy_type": "fifo", "min_active_seconds": MIN_ACTIVE_SECONDS, "max_wait_seconds": 10.0},
            "start_timeout_seconds": 30.0,
            "shutdown_timeout_seconds": 2.0,
            "stop_timeout_seconds": 2.0,
            **({"gpus": [{"memory": CAPACITY_MIB << 20}] * scenario.gpus} if place.places_models else {}),
            **(changes or {}),
        }
    )
    return DemoSetup(settings, ledgers, place.pictures)


def find_engine() -> str:
    """The path of the simulated engine's program; raises EngineMissing."""
    beside = Path(sys.executable).with_name(ENGINE_PROGRAM)
    found = str(beside) if beside.is_file() else shutil.which(ENGINE_PROGRAM)
    if found is None:
        raise EngineMissing
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a demo runs."""

    engine_program: str
    directory: Path
    places_models: bool
    """Whether there are several GPUs, on which llmux places the models by what they need."""

    @property
    def ledger(self) -> Path:
        """The file of the GPU, or a pattern of the files of several."""
        return self.directory / ("gpu-{gpu}.json" if self.places_models else "gpu.json")

    @property
    def comfyui(self) -> Path:
        return self.directory / "comfyui"

    @property
    def pictures(self) -> Path:
        return self.comfyui / "output"


def _model_settings(model: DemoModel, place: _Place) -> dict[str, Any]:
    match model.engine:
        case Vllm() as engine:
            settings, flags = _vllm(engine, model)
        case EmbeddingServer() as engine:
            settings, flags = _embedding_server(engine, place)
        case ImageServer() as engine:
            settings, flags = _image_server(engine, place)
        case _:
            assert_never(model.engine)
    flags |= {
        "--startup-delay-ms": _milliseconds(model.engine.start_seconds),
        "--sim-gpu-ledger": place.ledger,
        "--sim-gpu-memory": model.memory_mib,
        "--sim-residue": model.asleep_mib,
    }
    # Arguments, not words of a start_command: the hook that reads the GPU is not given the latter.
    words = [word for flag, value in flags.items() for word in (flag, str(value))]
    needs = {"gpu_memory": model.memory_mib << 20, "gpus": model.gpus} if place.places_models else {}
    return {"eviction": model.eviction, **needs, **settings, "extra_args": words}


def _vllm(engine: Vllm, model: DemoModel) -> tuple[dict[str, Any], dict[str, object]]:
    """Its settings, and the flags of the simulation."""
    flags: dict[str, object] = {
        "--latency-ms": _milliseconds(FIRST_TOKEN_SECONDS),
        "--token-ms": _milliseconds(TOKEN_SECONDS),
        "--sim-sleep-ms": _milliseconds(engine.sleep_seconds),
        "--sim-wake-ms": _milliseconds(engine.wake_seconds),
        "--sim-reload-ms": _milliseconds(engine.reload_seconds),
        "--sim-stop-delay-ms": _milliseconds(engine.stop_seconds),
    }
    return {"model_path": f"simulated/{model.name}"}, flags


def _embedding_server(engine: EmbeddingServer, place: _Place) -> tuple[dict[str, Any], dict[str, object]]:
    """Its settings, and the flags of the simulation."""
    command = [place.engine_program, "--sim-kind", "embeddings", "--model", "{name}", "--port", "{port}"]
    flags: dict[str, object] = {
        "--latency-ms": _milliseconds(FIRST_TOKEN_SECONDS),
        "--sim-stop-delay-ms": _milliseconds(engine.stop_seconds),
    }
    return {"engine": "command", "start_command": command}, flags


def _image_server(engine: ImageServer, place: _Place) -> tuple[dict[str, Any], dict[str, object]]:
    """Its settings, and the flags of the simulation."""
    settings = {
        "engine": "comfyui",
        "model_path": str(place.comfyui),
        "command": sys.executable,
        "env": {KIND_VARIABLE: "comfyui"},
    }
    flags: dict[str, object] = {
        "--output-directory": place.pictures,
        "--sim-prompt-ms": _milliseconds(engine.prompt_seconds),
        "--sim-free-ms": _milliseconds(engine.free_seconds),
    }
    return settings, flags


def _milliseconds(seconds: float) -> float:
    return seconds * 1000
