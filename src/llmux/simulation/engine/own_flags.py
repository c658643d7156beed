"""The simulation's own flags, which every kind of simulated engine has beside those of what it imitates."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol, TypeVar

from llmux.simulation.engine.faults import Fault, Faults

ENVIRONMENT_PREFIX = "LLMUX_SIM_"


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Settings = TypeVar("Settings", bound=Dataclass)


def gather(given: argparse.Namespace, settings: type[Settings]) -> Settings:
    """The settings that were given; those that the command line does not have keep their defaults."""
    names = [field.name for field in fields(settings)]
    return settings(**{name: getattr(given, name) for name in names if hasattr(given, name)})


class OwnFlags:
    """A group of flags, each of which has an environment variable: ``--sim-wake-ms`` is ``LLMUX_SIM_WAKE_MS``."""

    def __init__(self, parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
        self._parser = parser
        self._environment = environment
        self._group = parser.add_argument_group("the simulation's own")

    def add(self, flag: str, dest: str, unit: str, default: str | None, meaning: str) -> None:
        """Add a flag with a value; ``unit`` is one of UNITS."""
        variable = ENVIRONMENT_PREFIX + flag.removeprefix("--").removeprefix("sim-").replace("-", "_").upper()
        # argparse converts defaults like arguments if they are strings.
        preset = self._environment.get("LLMUX_SIM_LEDGER" if flag == "--sim-gpu-ledger" else variable, default)
        self._group.add_argument(flag, dest=dest, type=UNITS[unit], default=preset, help=meaning, metavar=unit)

    def add_memory(self, share: str) -> None:
        """Where memory is allocated, and how much; ``share`` says how much it is by default."""
        self.add(
            "--sim-gpu-ledger",
            "ledger_path",
            "FILE",
            None,
            "file of the virtual GPU, {gpu} being its number; also LLMUX_SIM_LEDGER",
        )
        self.add("--sim-gpu-memory", "gpu_memory_mib", "MIB", None, f"allocated while awake (default: {share})")

    def add_common(self) -> None:
        """The start, tokens, memory that stays, the end, and faults."""
        self.add("--latency-ms", "first_token_seconds", "MS", "50", "time to the first token (50)")
        self.add("--token-ms", "token_seconds", "MS", "0", "time per further token (0)")
        full_batch = "time per further token in a full batch (0: as --token-ms)"
        self.add("--sim-full-batch-token-ms", "full_batch_token_seconds", "MS", "0", full_batch)
        prefill = "prefill rate; one prompt at a time (0: prefills take no time)"
        self.add("--sim-prefill-tokens-per-second", "prefill_tokens_per_second", "RATE", "0", prefill)
        self.add("--startup-delay-ms", "startup_delay_seconds", "MS", "0", "duration of the start (0)")
        self.add("--sim-residue", "residue_mib", "MIB", "0", "allocated while asleep (0)")
        held = "real memory held while awake; half at sleep level 1 (0)"
        self.add("--sim-hold-memory", "hold_memory_mib", "MIB", "0", held)
        self.add("--sim-stop-delay-ms", "stop_delay_seconds", "MS", "0", "time from SIGTERM to the exit (0)")
        self._group.add_argument(
            "--sim-read-weights",
            dest="reads_weights",
            action="store_true",
            default=self._environment.get("LLMUX_SIM_READ_WEIGHTS") == "1",
            help="read the model's files at the start, and when vLLM reloads its weights",
        )
        known = f"a fault to inject, repeatable; one of {', '.join(Fault)}"
        self._group.add_argument("--sim-fault", action="append", metavar="FAULT[:ARGUMENT][@PATH]", help=known)

    def add_worker(self) -> None:
        """The process that owns the memory, where that is not the engine's root."""
        linger = "how long the worker process outlives its root (3000)"
        self.add("--sim-worker-linger-ms", "worker_linger_seconds", "MS", "3000", linger)
        self._group.add_argument(
            "--sim-worker",
            dest="worker",
            action="store_true",
            default=self._environment.get("LLMUX_SIM_WORKER") == "1",
            help="fork a worker process that owns the memory, as vLLM and SGLang do",
        )

    def add_ranks(self) -> None:
        """Several processes that own the memory, as the ranks of an engine on several GPUs do."""
        self.add("--sim-ranks", "ranks", "COUNT", "1", "worker processes, each with its part of the memory (1)")

    def faults(self, given: argparse.Namespace) -> Faults:
        """The faults that were asked for; exits with code 2 for an unknown one."""
        try:
            return Faults(given.sim_fault or filter(None, self._environment.get("LLMUX_SIM_FAULT", "").split(",")))
        except ValueError as error:
            self._parser.error(str(error))


def positive(text: str) -> int:
    """A whole number above 0, as argparse wants it."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def _milliseconds(text: str) -> float:
    return float(text) / 1000


UNITS: Mapping[str, Callable[[str], Any]] = {
    "MS": _milliseconds,
    "RATE": float,
    "MIB": int,
    "COUNT": int,
    "FILE": str,
    "LIST": str,
    "NAME": str,
}
