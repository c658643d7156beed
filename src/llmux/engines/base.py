"""The port to engines: what the rest of llmux asks a kind of engine, and what a kind must answer.

A kind is one module here with a subclass of ``Engine``, entered in ``registry.py``. All that the rest of llmux does
with an engine goes through this class, so that no other module knows one kind from another. ``tests/conformance`` holds
the tests that every kind passes.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from llmux.core.eviction import STOP, Eviction, Process, Weights
from llmux.core.names import ModelName, NameKind
from llmux.engines.calls import ControlTimeouts, Endpoints, RankCalls
from llmux.engines.files import WEIGHT_FILES, in_loading_order, snapshot_files
from llmux.engines.paths import RequestRules
from llmux.engines.questions import CANARY, Question
from llmux.engines.steps import DumpProcess, Step, StopProcess, SuspendGpu
from llmux.errors import Problem, UnsupportedEviction

DEFAULT_MAX_IN_FLIGHT = 256
"""vLLM's own default on most GPUs; engines that batch less have a smaller one of their own."""

READ_BACK_SHARE = 0.1
"""To read KV cache back from host memory takes a tenth of its prefill: 128 KiB a token (a model of 8 B parameters) at
10 GB/s, beside 8,000 tokens a second."""

LOOPBACK = "127.0.0.1"
HEALTH_PATH = "/health"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the configuration says of one model, as far as its engine is concerned.

    ``start_command`` to ``api_key`` are empty for kinds that do not have them; ``check`` refuses them there.
    """

    name: str
    """The model's key, by which most clients ask for it."""
    model_path: str
    program: str
    """A name on PATH, or a path."""
    extra_args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """What is configured; the rest is inherited from llmux."""
    timeouts: ControlTimeouts = field(default_factory=ControlTimeouts)
    has_port: bool = False
    """Whether the model's port is configured."""
    may_offload: bool = False
    """Whether the model may leave with its weights in host memory, for which an engine may have to be started."""
    start_command: tuple[str, ...] = ()
    stop_command: tuple[str, ...] = ()
    ready_path: str = ""
    wake_command: str = ""
    sleep_command: str = ""
    alive_command: str = ""
    url: str = ""
    api_key: str | None = None
    cache_directory: Path | None = None
    """Where files may be kept from one start to the next: compiled kernels, saved prompts."""
    rank_calls: RankCalls = field(default_factory=RankCalls)
    gpu_memory_mib: int = 0
    """What it may take of each of its GPUs; 0 if that is not declared."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Files of adapters by their names, for a kind whose arguments have no names for them."""
    saved_prompts_bytes: int = 0
    """How much of ``cache_directory`` the model's saved prompts may take; 0: they are not saved."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine says of itself when it has started."""

    keeps_requests: bool = False
    """Whether its requests can be suspended with it."""
    max_model_length: int | None = None
    """How many tokens a request may have; None if it does not say."""
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Engine(ABC):
    """One model's engine: what is known of it before it runs, and how it is spoken to while it does. Immutable."""

    options: EngineOptions

    kind: ClassVar[str]
    """Its name in the configuration."""
    default_program: ClassVar[str]
    takes_socket: ClassVar[bool] = False
    """Whether it can listen on a Unix socket instead of a port."""
    key_variable: ClassVar[str | None] = None
    """The variable from which it takes the key that it requires."""
    keep_alive_seconds: ClassVar[float] = 60.0
    """How long llmux keeps an idle connection to it: less than the engine does."""
    max_in_flight_default: ClassVar[int] = DEFAULT_MAX_IN_FLIGHT
    max_stop_seconds: ClassVar[float] = float("inf")
    """How long waiting for its end after SIGTERM pays, whatever is configured."""
    default_eviction: ClassVar[Eviction | None] = None
    """How it leaves where nothing is configured; None: by ``policy.eviction``."""
    runs_as_process: ClassVar[bool] = True
    """Whether it is a process that llmux starts and ends."""
    uses_gpu: ClassVar[bool] = True
    """Whether it takes memory of the GPUs that llmux schedules."""
    suspends_requests: ClassVar[bool] = False
    """Whether its requests can be suspended with it, by evictions with a step for that. ``find_abilities`` asks the
    version that runs."""
    can_be_dumped: ClassVar[bool] = True
    """Whether criu can put its processes into an image."""
    maps_weights: ClassVar[bool] = False
    """Whether its weights stay in their files, mapped, so that an image of its processes is without them."""
    has_ranks: ClassVar[bool] = False
    """Whether it has a process for each of its GPUs, which must let go of each other before they are suspended."""
    has_rank_calls: ClassVar[bool] = False
    """Whether it has calls by which they do."""
    cuda_process_names: ClassVar[tuple[str, ...]] = ()
    """Found in the command lines of its processes that use CUDA."""
    works_after_answering: ClassVar[bool] = False
    """Whether work goes on when the HTTP answer has ended, so that ``has_work`` must be asked."""
    environment_prefixes: ClassVar[tuple[str, ...]] = ()
    """Variables with these prefixes change what it computes or how it starts."""
    temporary_variables: ClassVar[frozenset[str]] = frozenset(("TMPDIR",))
    """Variables that differ at every start."""
    own_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys of a model's section that only some kinds have, and this one does."""
    keys_without_use: ClassVar[frozenset[str]] = frozenset()
    """Keys of every model's section that mean nothing for this kind."""
    needs_model_path: ClassVar[bool] = True
    package: ClassVar[str | None] = None
    """The Python package whose metadata tells its version."""
    version_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments with which the program prints its version at once, and does nothing else; empty if it cannot."""
    gpu_share_flag: ClassVar[str | None] = None
    """The flag that says how much of a GPU's memory it takes."""
    reserved_flags: ClassVar[tuple[str, ...]] = ()
    """Flags that llmux sets itself."""
    read_flags: ClassVar[tuple[str, ...]] = ()
    """Long flags that llmux reads, by their full names."""
    completes_flags: ClassVar[bool] = True
    """Whether it takes the beginning of a flag for the flag, as Python's argparse does."""
    rules: ClassVar[RequestRules] = RequestRules()
    canary: ClassVar[Question | None] = CANARY
    """The question whose answer must be the same after every wake; None: its wakes are not checked."""
    out_of_memory: ClassVar[re.Pattern[str]] = re.compile("out of memory", re.IGNORECASE)
    """Found in a line of output that says that the GPU had too little memory."""
    causes: ClassVar[tuple[tuple[re.Pattern[str], str], ...]] = ()
    """What further lines of output tell of an engine's end, in llmux's words: clients must not see the line itself."""

    # What it is called, and what it needs: read from its arguments.

    @property
    def served_names(self) -> tuple[str, ...]:
        """What it is told to call itself; its answers carry the first one."""
        return (self.options.name, *self.further_names)

    @property
    def further_names(self) -> tuple[str, ...]:
        """Names that its arguments give it beside the model's own."""
        return ()

    @property
    def adapters(self) -> tuple[tuple[str, str], ...]:
        """Name and path of each adapter that can be asked for as a model."""
        return ()

    @property
    def api_key(self) -> str | None:
        """The key that it requires, as far as the configuration tells: it may inherit ``key_variable`` from llmux."""
        variable = self.key_variable
        return self.options.api_key or (self.options.environment.get(variable) if variable else None) or None

    @property
    def max_in_flight(self) -> int:
        """How many requests it works on at once.

        Raises ValueError, with a message for the user, if an argument is wrong.
        """
        return self.max_in_flight_default

    @property
    def gpu_count(self) -> int:
        """How many GPUs it spreads the model over; raises as ``max_in_flight``."""
        return 1

    def gpus_used(self, gpu_mib: int) -> int | None:
        """How many GPUs of this size it uses; None: all that it sees. Reads the disk, and raises as ``gpu_count``."""
        return self.gpu_count if self.has_ranks else None

    @property
    def start_share(self) -> float | None:
        """The share of a GPU's memory that must be free at its start; None if its arguments do not tell."""
        return None

    @property
    def arguments(self) -> tuple[str, ...]:
        """Those of ``extra_args`` that are passed on as they are."""
        return self.options.extra_args

    @property
    def max_model_length(self) -> int | None:
        """How many tokens a request may have; None if its arguments do not tell."""
        return None

    def names(self) -> Iterator[ModelName]:
        """The names that stand for the model or an adapter of it, but for aliases and the path of its weights."""
        key, path = self.options.name, self.options.model_path
        fields = self.added_fields()
        yield ModelName(key, key, self.served_names[0], root=path, added_fields=fields)
        for served in self.further_names:
            yield ModelName(served, key, served, NameKind.SERVED, path, fields)
        for adapter, adapter_path in self.adapters:
            served, fields = self.adapter_in_requests(adapter), self.added_fields(adapter)
            yield ModelName(adapter, key, served, NameKind.ADAPTER, adapter_path, fields)

    def adapter_in_requests(self, adapter: str) -> str:
        """What a request to the engine must name as its model to be answered with this adapter."""
        return adapter

    def added_fields(self, adapter: str | None = None) -> Mapping[str, object]:
        """Fields that a request must have as well to be answered with an adapter, or with none.

        They are among the ``removed_fields`` of the kind's rules, so that clients' own do not count.
        """
        return {}

    @property
    def health_path(self) -> str:
        """Answers 200 while the engine lives, and not before it is ready."""
        return HEALTH_PATH

    @property
    def listens_itself(self) -> bool:
        """Whether it is a process of its own tree that listens, and not a container's, which descends from another."""
        return True

    @property
    def sees_given_gpus(self) -> bool:
        """Whether it uses the GPUs that CUDA_VISIBLE_DEVICES names: not what runs elsewhere, as in a container."""
        return self.runs_as_process and self.listens_itself

    # What is wrong with its configuration. Paths of problems are relative to the model's section.

    def problems(self, eviction: Eviction) -> Iterator[Problem]:
        """What cannot work, if it is to leave by ``eviction``."""
        if reason := self.why_not(eviction):
            yield Problem("eviction", reason, f"use one of {', '.join(map(str, self.evictions()))}")

    def warnings(self) -> Iterator[Problem]:
        """What works, but probably not as intended."""
        yield from ()

    def recompute_share(self, eviction: Eviction) -> float:
        """What requests that were suspended, and left by ``eviction``, compute again: a share of what they had.

        1: all of it; 0: nothing; ``READ_BACK_SHARE`` where it is read back from host memory in place of that.
        """
        is_whole = eviction.process in (Process.CUDA_SUSPEND, Process.CHECKPOINT) and eviction.weights is Weights.RETAIN
        return 0.0 if is_whole else 1.0

    def advice(self, eviction: Eviction) -> Iterator[Problem]:
        """What would make its requests go on sooner when they have been suspended and it has left by ``eviction``."""
        yield from ()

    # How it is started.

    def memory_arguments(self, gpu_total_mib: int) -> tuple[str, ...]:
        """Arguments that keep it within ``gpu_memory_mib`` of GPUs of this size, where its own do not say."""
        return ()

    @abstractmethod
    def command_line(self, port: int, socket_path: Path | None = None) -> tuple[str, ...]:
        """The command that starts it on a port of loopback, or on a Unix socket where ``takes_socket``."""

    def stop_command(self, port: int) -> tuple[str, ...]:
        """The command that ends what does not end with its processes, such as a container; empty if nothing does."""
        return ()

    def environment(
        self, inherited: Mapping[str, str], temporary_directory: str, *, checkpointable: bool
    ) -> dict[str, str]:
        """All of its variables. Its temporary files stay in its own directory."""
        return {**inherited, "TMPDIR": temporary_directory, **self.options.environment}

    def files(self) -> Iterator[Path]:
        """Local files of the model: an image that was made from others is out of date. Reads the disk."""
        path = Path(self.options.model_path)
        try:
            if path.is_dir():
                yield from (entry for entry in path.iterdir() if entry.is_file())
            elif path.is_file():
                yield path
        except OSError:
            return

    def weight_files(self) -> Iterator[Path]:
        """Those of its files that hold weights; none where the weights are not local. Reads the disk."""
        return (file for file in self.files() if file.suffix in WEIGHT_FILES)

    def files_to_load(self, environment: Mapping[str, str]) -> Sequence[Path]:
        """The files that it reads at its start, in that order, as far as they are known. Reads the disk.

        ``environment``: its own; it says where the Hugging Face cache is.
        """
        files = list(self.files())
        return in_loading_order(files or snapshot_files(self.options.model_path, environment))

    def refuses_socket(self, lines: Sequence[str]) -> bool:
        """Whether its last lines of output say that it does not know how to listen on a socket."""
        return False

    # What it says.

    async def find_abilities(self, endpoints: Endpoints, *, freezes: bool) -> Abilities:
        """Ask an engine that has just started; ``freezes``: whether ``keeps_requests`` matters.

        Raises ControlCallFailed.
        """
        return Abilities()

    async def has_work(self, endpoints: Endpoints) -> bool:
        """Whether it still works on something, where ``works_after_answering``; raises ControlCallFailed."""
        return False

    def reports_out_of_memory(self, lines: Sequence[str]) -> bool:
        """Whether its last lines of output say that the GPU had too little memory for it."""
        return any(self.out_of_memory.search(line) for line in lines)

    def known_cause(self, lines: Sequence[str]) -> str | None:
        """Why it ended, if its last lines of output tell."""
        patterns = ((self.out_of_memory, "out of GPU memory"), *self.causes)
        causes = (cause for line in reversed(lines) for pattern, cause in patterns if pattern.search(line))
        return next(causes, None)

    def lacks(self, version: str, eviction: Eviction, *, freezes: bool) -> str | None:
        """What this version cannot do of what is configured, as far as its number tells; None if nothing is known.

        ``freezes``: its requests are to be suspended with it.
        """
        return None

    # How it leaves the GPU and comes back.

    def steps(self, eviction: Eviction, *, freeze: bool = False) -> tuple[Step, ...]:
        """The steps by which it leaves, in order; raises UnsupportedEviction.

        ``freeze``: it has requests that are to be suspended with it.
        """
        match eviction.process:
            case Process.STOP:
                return (StopProcess(),)
            case Process.CHECKPOINT if self.can_be_dumped and eviction.weights is Weights.RETAIN:
                self.check_ranks(eviction)
                return (SuspendGpu(is_for_dump=True), DumpProcess(keeps_requests=freeze))
            case Process.CUDA_SUSPEND if eviction.weights is Weights.RETAIN:
                self.check_suspendable(eviction)
                return (SuspendGpu(freeze),)
            case Process.KEEP_RUNNING if eviction.weights is Weights.RETAIN:
                return ()
            case _:
                raise UnsupportedEviction(eviction)

    def check_suspendable(self, eviction: Eviction) -> None:
        """Raises UnsupportedEviction if no process of its tree holds its GPU memory, or some cannot be suspended."""
        if not self.uses_gpu:
            raise UnsupportedEviction(eviction, "it uses none of this machine's GPUs")
        if not self.sees_given_gpus:
            raise UnsupportedEviction(eviction, "its processes are not llmux's own, as those in a container")
        self.check_ranks(eviction)

    def check_ranks(self, eviction: Eviction) -> None:
        """Raises UnsupportedEviction if it has several ranks, and no calls by which they let go of each other."""
        if self.has_ranks and not self.has_rank_calls and self._has_several_gpus:
            reason = (
                "its processes on several GPUs are connected, and it has no call by which they let go of each other"
            )
            raise UnsupportedEviction(eviction, reason)

    @property
    def _has_several_gpus(self) -> bool:
        try:
            return self.gpu_count > 1
        except ValueError:
            return False

    def parse_step(self, text: str) -> Step:
        """The step that ``str(step)`` gives, from an image's manifest; raises ValueError."""
        for eviction in self.evictions():
            for step in (*self.steps(eviction), *self.steps(eviction, freeze=True)):
                if str(step) == text:
                    return step
        raise ValueError(f"no step of a {self.kind} engine is called {text!r}")

    def why_not(self, eviction: Eviction) -> str | None:
        """Why it cannot leave by ``eviction``; None if it can."""
        try:
            self.steps(eviction)
        except UnsupportedEviction as refusal:
            return str(refusal)
        return None

    def evictions(self) -> tuple[Eviction, ...]:
        """Every eviction that it can leave by."""
        every = (Eviction(weights, process) for process in Process for weights in Weights)
        return tuple(eviction for eviction in every if self.why_not(eviction) is None)

    def can_keep_requests(self, eviction: Eviction) -> bool:
        """Whether a version of it can leave by ``eviction`` with its requests, to go on with them afterwards."""
        if not self.suspends_requests or self.why_not(eviction) is not None:
            return False
        return any(step.keeps_requests for step in self.steps(eviction, freeze=True))

    def frees_memory(self, eviction: Eviction) -> bool:
        """Whether any of its GPU memory is free after it has left by ``eviction``; without a step, it stays there."""
        return eviction.leaves_the_gpu or (self.why_not(eviction) is None and bool(self.steps(eviction)))

    def nearest(self, eviction: Eviction) -> Eviction:
        """The same, or what takes its place in an engine that cannot: ``stop``."""
        return eviction if self.why_not(eviction) is None else STOP

    def prepare_start(self, image_made_at: float | None = None) -> object:
        """Called before each start, or after a restore from an image of that time; reads the disk, in a thread.

        Returns what this start of it is to remember, for its steps and ``came_back``: the engine itself remembers
        nothing. Raises LlmuxError if it must not be started.
        """
        return None

    async def came_back(self, endpoints: Endpoints, state: object) -> None:
        """Called when it has been started, restored or woken and has answered the canary, before any request.

        ``state``: what ``prepare_start`` returned.
        """
        return
