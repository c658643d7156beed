"""Everything about one model's engine that does not change while llmux runs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmux.checkpoints.fingerprint import fingerprint_of, stamps_of
from llmux.core.identifiers import VISIBLE_GPUS
from llmux.engines.base import Engine
from llmux.engines.questions import CanaryExtras
from llmux.gpus.cuda import CudaLimits
from llmux.hosts.local import size_mib
from llmux.instances.process import LaunchCommand
from llmux.redaction import Redactor


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How a model's engine is started and controlled.

    ``prefers_socket``: let it listen on a Unix socket if it can, and else on ``port``. ``checkpointable``: start it so
    that criu can dump it. ``freezes``: suspend its requests with it, if it can do that. ``canary_every``: check its
    answers after one wake in so many; None: never. ``host_memory_reserve_mib``: host memory that must stay free when
    its weights are offloaded.
    """

    engine: Engine
    port: int
    prefers_socket: bool = False
    start_timeout_seconds: float = 1800.0
    stop_timeout_seconds: float = 10.0
    checkpointable: bool = False
    freezes: bool = False
    canary_every: int | None = None
    canary_extras: CanaryExtras = field(default_factory=CanaryExtras)
    host_memory_reserve_mib: int = 0
    declared_gpu_mib: int | None = None
    """The memory of its smallest GPU, where the configuration says it."""
    cuda_limits: CudaLimits = field(default_factory=CudaLimits)
    redactor: Redactor = field(default_factory=Redactor)
    """Takes secrets out of what the engine prints and answers, before it is logged, kept or passed on."""

    @property
    def model(self) -> str:
        """The model's key."""
        return self.engine.options.name

    @property
    def program(self) -> str:
        """The engine's program."""
        return self.engine.options.program

    @property
    def argv(self) -> tuple[str, ...]:
        """The engine's command line, on its port."""
        return self.engine.command_line(self.port)

    @property
    def api_key(self) -> str | None:
        """The key that the engine requires; it inherits llmux's environment."""
        variable = self.engine.key_variable
        return self.engine.api_key or (os.environ.get(variable) if variable else None) or None

    def fingerprint(self) -> str:
        """Identifies the command, environment and files it is started with; reads the disk.

        An image with another fingerprint is out of date.
        """
        engine = self.engine
        return fingerprint_of(
            # Without its port, which is another one in each llmux unless it is configured.
            (*engine.command_line(0), str(engine.options.gpu_memory_mib)),
            os.environ | engine.options.environment,
            engine.options.environment,
            stamps_of(self.program, engine.files()),
            prefixes=engine.environment_prefixes,
            ignored=engine.temporary_variables,
        )

    def files_to_load(self) -> Sequence[Path]:
        """The files that its start reads, in that order, as far as they are known; reads the disk."""
        return self.engine.files_to_load(os.environ | self.engine.options.environment)

    def weights_mib(self) -> int:
        """The size of the weights' files; reads the disk."""
        return size_mib(self.engine.weight_files())

    def launch_command(
        self,
        temporary_directory: Path,
        socket_path: Path | None = None,
        devices: tuple[str, ...] = (),
        gpu_total_mib: int | None = None,
    ) -> LaunchCommand:
        """The command for the shim; ``temporary_directory`` belongs to the engine from then on.

        ``devices``: the GPUs that it may see; empty for all that llmux sees. ``gpu_total_mib``: the memory of the
        smallest of them, where it can be read.
        """
        environment = self.engine.environment(os.environ, str(temporary_directory), checkpointable=self.checkpointable)
        if devices:
            # In the order of NVML, by which they were counted; CUDA's own default puts the fastest first.
            environment |= {VISIBLE_GPUS: ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        total_mib = gpu_total_mib or self.declared_gpu_mib
        memory = () if total_mib is None else self.engine.memory_arguments(total_mib)
        return LaunchCommand(
            (*self.engine.command_line(self.port, socket_path), *memory),
            environment,
            temporary_directory=temporary_directory,
            checkpointable=self.checkpointable,
            stop_argv=self.engine.stop_command(self.port),
            stop_seconds=self.stop_timeout_seconds,
        )

    @property
    def stop_command(self) -> LaunchCommand | None:
        """The command that ends what an earlier engine may have left behind; None if nothing can be."""
        argv = self.engine.stop_command(self.port)
        return LaunchCommand(argv, {**os.environ, **self.engine.options.environment}) if argv else None
