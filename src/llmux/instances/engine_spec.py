"""Everything about one model's engine that does not change while llmux runs."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from llmux.checkpoints.fingerprint import fingerprint_of, stamps_of
from llmux.hosts.local import available_mib, weights_mib
from llmux.instances import vllm
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

    model: str
    program: str
    model_path: str
    port: int
    served_names: tuple[str, ...]
    extra_args: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    api_key: str | None = None
    prefers_socket: bool = False
    start_timeout_seconds: float = 1800.0
    stop_timeout_seconds: float = 10.0
    timeouts: vllm.ControlTimeouts = field(default_factory=vllm.ControlTimeouts)
    checkpointable: bool = False
    freezes: bool = False
    canary_every: int | None = None
    host_memory_reserve_mib: int = 0
    redactor: Redactor = field(default_factory=Redactor)
    """Takes secrets out of what the engine prints and answers, before it is logged, kept or passed on."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The engine's command line, on its port."""
        return vllm.command_line(self.program, self.model_path, self.port, self.served_names, self.extra_args)

    def fingerprint(self) -> str:
        """Identifies the command, environment and files it is started with; reads the disk.

        An image with another fingerprint is out of date.
        """
        files = stamps_of(self.program, self.model_path)
        return fingerprint_of(self.argv, os.environ | self.environment, self.environment, files)

    def fits_into_host_memory(self) -> bool:
        """Whether the weights can be offloaded now without touching the reserve; reads the disk."""
        return available_mib() - weights_mib(self.model_path) >= self.host_memory_reserve_mib

    def launch_command(self, temporary_directory: Path, socket_path: Path | None = None) -> LaunchCommand:
        """The command for the shim; ``temporary_directory`` belongs to the engine from then on."""
        argv = vllm.command_line(
            self.program, self.model_path, self.port, self.served_names, self.extra_args, socket_path=socket_path
        )
        configured = (vllm.WITHOUT_IO_URING if self.checkpointable else {}) | self.environment
        environment = vllm.environment(os.environ, configured, str(temporary_directory))
        return LaunchCommand(
            argv, environment, temporary_directory=temporary_directory, checkpointable=self.checkpointable
        )
