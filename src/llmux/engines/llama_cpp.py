"""llama.cpp's llama-server: its command line and environment, what it says, and its conversations over a stop.

It starts within a second while its weights are in the page cache, which they stay in when it stops. So it leaves the
GPU by ending, and what would be lost with it, the prompts of its slots, is saved before and restored after.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import structlog

from llmux.core.eviction import Eviction, Process, Weights
from llmux.engines import llama_flags
from llmux.engines.base import LOOPBACK, Abilities, Engine
from llmux.engines.calls import Endpoints
from llmux.engines.files import exists, is_directory, is_file
from llmux.engines.gguf import MAGIC, GgufModel, GgufUnreadable, read_model
from llmux.engines.identity import digest, file_identity
from llmux.engines.paths import JSON, Endpoint, MediaType, RequestRules
from llmux.engines.prompt_files import PromptFiles, identity_of, prompt_files_in
from llmux.engines.questions import CANARY, Question
from llmux.engines.saved_prompts import Report, SavedPrompts
from llmux.engines.steps import EngineControls, Step, StopProcess, is_suspended
from llmux.errors import ControlCallFailed, LlmuxError, Problem

log = structlog.get_logger("engine")

DEFAULT_SLOTS = 1
"""Each slot takes its share of the context: with more, a request could be only as long as that share, and who writes
``-c 8192`` means requests of 8,192 tokens. llama-server's own default shares all of it among four slots, so that
several long requests at once fail, and keeps the prompt of one slot only."""

BESIDE_WEIGHTS = 1.25
"""What it takes of a GPU for its weights and KV cache, and by a generous guess for all else: compute buffers, CUDA's
context, an encoder of images."""
SAVE_SECONDS = 10.0
RESTORE_SECONDS = 10.0
"""A switch waits for them. 2 GiB take two to four seconds on an SSD, and reading the prompts again takes longer."""
DEVICES_SECONDS = 30.0
"""For listing the GPUs: the first use of a driver can take seconds."""

REPOSITORY_PREFIX = "hf:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
_DEVICE = re.compile(r"\s+(?!\(none\))\S+: ")

KEY_VARIABLE = "LLAMA_API_KEY"
VARIABLE_PREFIX = "LLAMA_ARG_"
_REMOVED_VARIABLES = frozenset((KEY_VARIABLE, "AIP_MODE", "AIP_HTTP_PORT", "AIP_PREDICT_ROUTE"))
"""Inherited, they would change where it listens, what it takes and from whom."""

_LISTENS = "engines listen on loopback, on a port of llmux's choice"
_TLS = "engines listen on loopback, without TLS"
_ROUTER = "it belongs to llama.cpp's router, whose work llmux does"
_TOOLS = "it would let clients run tools, and reach files, on this machine"
_NAMES = "it is called by its model's name"
_WEIGHTS = "it would load another model than the one that llmux knows of"
_REMEDY_NAMES = "write the names into aliases"
_REMEDY_WEIGHTS = "write the file, or hf:OWNER/NAME:QUANT, into model_path"
_REMOVE = "remove it"
_REFUSED: Mapping[str, tuple[str, str]] = {
    "host": (_LISTENS, _REMOVE),
    "port": (_LISTENS, "use the model's port"),
    "reuse-port": ("two engines would share a port", _REMOVE),
    "api-prefix": ("llmux asks for the engine's paths as they are", _REMOVE),
    "alias": (_NAMES, _REMEDY_NAMES),
    "model": (_WEIGHTS, _REMEDY_WEIGHTS),
    "model-url": (_WEIGHTS, _REMEDY_WEIGHTS),
    "docker-repo": (_WEIGHTS, _REMEDY_WEIGHTS),
    "hf-repo": (_WEIGHTS, _REMEDY_WEIGHTS),
    "sleep-idle-seconds": (
        "asleep, it takes the GPU back at any request, without asking llmux, and dies if it does not get it",
        "remove it: llmux stops it when another model needs the GPU",
    ),
    "slot-save-path": ("llmux chooses where prompts are saved", "use saved_prompts_mib, and cache_dir"),
    "api-key-file": ("llmux asks the engine itself, and would not know the key", "use --api-key"),
    "agent": (_TOOLS, _REMOVE),
    "tools": (_TOOLS, _REMOVE),
    "tools-runtime": (_TOOLS, _REMOVE),
    "ui-mcp-proxy": (_TOOLS, _REMOVE),
    "lora-init-without-apply": ("which adapters answer would depend on earlier requests", _REMOVE),
}
"""Why a flag is refused, and what to do, by its usual name."""
_REFUSED_PREFIXES: Mapping[str, tuple[str, str]] = {
    "--mcp-": (_TOOLS, _REMOVE),
    "--models-": (_ROUTER, _REMOVE),
    "--no-models-": (_ROUTER, _REMOVE),
    "--ssl-": (_TLS, _REMOVE),
}
"""The same by the beginning of a flag: newer versions have more of them."""
_READ = frozenset(
    """
    ctx-size parallel n-gpu-layers device split-mode tensor-split model-draft fit kv-unified cache-type-k cache-type-v
    lora api-key
    """.split()  # noqa: SIM905
)
"""Flags that llmux reads in ``extra_args``, and that must not be variables instead."""

_PATHS = """
    /v1/chat/completions /chat/completions /v1/completions /completions /completion /v1/responses /responses
    /v1/messages /v1/messages/count_tokens /v1/chat/completions/input_tokens /v1/responses/input_tokens /infill
    /v1/embeddings /embeddings /embedding /v1/rerank /rerank /v1/reranking /reranking
    /tokenize /detokenize /apply-template /v1/systemone
""".split()  # noqa: SIM905
_FORM = frozenset((MediaType.FORM,))
ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        *(Endpoint(path, media_types=JSON) for path in _PATHS),
        *(Endpoint(path, media_types=_FORM) for path in ("/v1/audio/transcriptions", "/audio/transcriptions")),
        # Clients read the template and the context's length there, and who has a slot. They are written by POST, and
        # /slots/ID saves and erases, which are no paths of clients.
        *(Endpoint(path, ("GET", "HEAD"), model_in_body=False, may_wake=False) for path in ("/props", "/slots")),
        Endpoint("/v1/models", ("GET", "HEAD"), model_in_body=False, may_wake=False),
    )
}

_FILE_FLAGS = frozenset(
    ("mmproj", "lora", "lora-scaled", "spec-draft-model", "control-vector", "control-vector-scaled", "model-vocoder")
)
"""Flags that name further files of weights."""

_CAUSES = (
    (re.compile(r"failed to open GGUF file|No such file or directory"), "its model file is not there"),
    (re.compile(r"not within the file bounds|corrupted or incomplete"), "its model file is incomplete"),
    (re.compile(r"invalid magic|failed to read magic"), "its model file is no GGUF file"),
    (re.compile(r"unknown model architecture|unknown architecture"), "an unsupported architecture"),
    (re.compile(r"invalid device:"), "it does not find the GPU that -dev names"),
    (re.compile(r"error: invalid argument|error while handling argument|error: unknown argument"), "wrong extra_args"),
    (re.compile(r"couldn't bind|failed to bind|address already in use", re.IGNORECASE), "its port is taken"),
    (
        re.compile(r"exactly one out metadata|failed to download|get_repo_\w+: error|HTTP error 40\d", re.IGNORECASE),
        "its model cannot be downloaded",
    ),
    (re.compile(r"No space left on device"), "the disk is full"),
    (re.compile(r"AMX is not ready"), "a build for another processor"),
    (re.compile(r"CUDA error|ErrorDeviceLost"), "a GPU error"),
    (re.compile(r"GGML_ASSERT"), "a failed check in llama.cpp"),
)


class NoGpu(LlmuxError):
    """An engine that would run on the processor instead of the GPU, without saying so."""

    def __init__(self, program: str) -> None:
        super().__init__(
            f"{program} finds no GPU and would answer from the processor: install a build for this GPU, or write "
            "-ngl 0 or -dev none into extra_args"
        )


@dataclass(frozen=True, slots=True)
class LlamaCpp(Engine):
    """llama-server with one model."""

    kind: ClassVar[str] = "llama_cpp"
    suspends_requests: ClassVar[bool] = True
    default_program: ClassVar[str] = "llama-server"
    keep_alive_seconds: ClassVar[float] = 4.0
    """It closes an idle connection after five."""
    max_stop_seconds: ClassVar[float] = 3.0
    """Idle, it ends within 0.1 s; with a client connected, never."""
    max_in_flight_default: ClassVar[int] = DEFAULT_SLOTS
    own_keys: ClassVar[frozenset[str]] = frozenset(("adapters", "saved_prompts_mib"))
    version_arguments: ClassVar[tuple[str, ...]] = ("--version",)
    completes_flags: ClassVar[bool] = False
    maps_weights: ClassVar[bool] = True
    environment_prefixes: ClassVar[tuple[str, ...]] = ("GGML_", "VK_")
    canary: ClassVar[Question] = replace(CANARY, fields={**CANARY.fields, "cache_prompt": False})
    """From the weights, not from a prompt that was read before."""
    out_of_memory: ClassVar[re.Pattern[str]] = re.compile(
        r"insufficient memory|out of memory|failed to allocate \S*\s*buffer|unable to allocate|OutOfDeviceMemory",
        re.IGNORECASE,
    )
    causes: ClassVar[tuple[tuple[re.Pattern[str], str], ...]] = _CAUSES
    rules: ClassVar[RequestRules] = RequestRules(
        endpoints=ENDPOINTS,
        never_forwarded=frozenset(("lora-adapters", "tools", "cors-proxy", "stream", "streams", "control")),
        # The first one lets a generation outlive its client, and others read it.
        removed_headers=frozenset(("x-conversation-id",)),
        # Another's slot; and adapters, after which other requests would be answered from the wrong prompts.
        removed_fields=frozenset(("id_slot", "lora")),
    )

    def _value(self, name: str) -> str | None:
        """The last value of a flag, by its usual name."""
        return llama_flags.value(self.options.extra_args, name)

    @property
    def api_key(self) -> str | None:
        # Of several, each will do.
        given = self._value("api-key") or self.options.environment.get(KEY_VARIABLE) or ""
        return next((key for key in given.split(",") if key), None)

    @property
    def max_in_flight(self) -> int:
        text = self._value("parallel")
        if text is None:
            return DEFAULT_SLOTS
        if not (text.isascii() and text.isdigit() and int(text[:6]) >= 1):
            raise ValueError(f"--parallel needs a whole number of at least 1, not {text[:60]!r}")
        return int(text[:6])

    @property
    def adapters(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.options.adapters.items())

    def added_fields(self, adapter: str | None = None) -> Mapping[str, object]:
        if not self.options.adapters:
            return {}
        # All of them, at scale 0 too: with an empty list, or none, a request may be answered from a prompt that an
        # earlier one had read with another adapter.
        scales = [1.0 if name == adapter else 0.0 for name in self.options.adapters]
        return {"lora": [{"id": number, "scale": scale} for number, scale in enumerate(scales)]}

    @property
    def max_model_length(self) -> int | None:
        if self._wants_gpu and self._value("fit") not in (None, "off"):
            return None
        model = self._readable_model()
        text = self._value("ctx-size") or "0"
        if not text.isdigit():
            return None
        context, slots = int(text[:9]), self.slots
        if model is not None:
            cells = model.cells(context, slots, is_unified=self._is_unified)
        elif context:
            cells = context
        else:
            return None
        return cells if self._is_unified else cells // slots

    def gpus_used(self, gpu_mib: int) -> int | None:
        if self._value("split-mode") == "none":
            return 1
        model = self._readable_model()
        if model is None or any(map(self._value, ("device", "tensor-split", "model-draft"))):
            return None
        text = self._value("ctx-size") or "0"
        cells = model.cells(int(text[:9]) if text.isdecimal() else 0, self.slots, is_unified=self._is_unified)
        foretold_bytes = model.weights_bytes + model.kv_bytes(cells)
        return 1 if foretold_bytes * BESIDE_WEIGHTS <= gpu_mib << 20 else None

    @property
    def slots(self) -> int:
        """``max_in_flight``, or the default if that is wrong."""
        try:
            return self.max_in_flight
        except ValueError:
            return DEFAULT_SLOTS

    @property
    def _is_unified(self) -> bool:
        return llama_flags.is_on(self.options.extra_args, "kv-unified")

    @property
    def _wants_gpu(self) -> bool:
        return self._value("n-gpu-layers") != "0" and self._value("device") != "none"

    @property
    def _is_repository(self) -> bool:
        """Whether the model is downloaded by llama-server itself. Reads the disk."""
        path = self.options.model_path
        if path.startswith(REPOSITORY_PREFIX):
            return True
        return bool(_REPOSITORY.fullmatch(path)) and not path.endswith(".gguf") and not os.path.lexists(path)

    def _readable_model(self) -> GgufModel | None:
        if self._is_repository:
            return None
        path = self.options.model_path
        try:
            return _read(path, file_identity(path))
        except (GgufUnreadable, OSError):
            return None

    # Its configuration.

    def problems(self, eviction: Eviction) -> Iterator[Problem]:
        yield from super(LlamaCpp, self).problems(eviction)
        yield from self._refused_words()
        yield from self._refused_variables()
        if self.options.adapters and (self._value("lora") or self._value("lora-scaled")):
            message = "adapters and --lora exclude each other: requests choose adapters by their positions"
            yield Problem("adapters", message, "write all of them into adapters, or each into a model of its own")
        for name, file in self.options.adapters.items():
            if "," in file:
                yield Problem(f"adapters.{name}", "llama-server takes a comma for the end of a path", "rename the file")
        path = Path(self.options.model_path)
        if is_directory(path):
            yield Problem("model_path", "is a directory", "name the .gguf file in it, of a split model the first one")
        elif is_file(path) and not _begins_as_gguf(path):
            yield Problem("model_path", f"{path} is not a GGUF file", "convert the model, or name its .gguf file")

    def _refused_words(self) -> Iterator[Problem]:
        for given in llama_flags.read(self.options.extra_args):
            name = given.words[0].partition("=")[0]
            if reason := _why_refused(given.flag, name):
                yield Problem("extra_args", f"{name}: {reason[0]}", reason[1])
            elif given.flag is not None and "=" in given.words[0]:
                message = f"{name}=VALUE is one word, which llama-server does not take apart"
                yield Problem("extra_args", message, "write the flag and its value as two items")

    def _refused_variables(self) -> Iterator[Problem]:
        for name in self.options.environment:
            if not name.startswith(VARIABLE_PREFIX):
                continue
            written = llama_flags.dashed(name)
            flag = llama_flags.find(written)
            if reason := _why_refused(flag, written):
                yield Problem(f"env.{name}", reason[0], reason[1])
            elif flag is not None and flag.name in _READ:
                yield Problem(f"env.{name}", "llmux has to know it", f"write {written} into extra_args")

    def warnings(self) -> Iterator[Problem]:
        path = Path(self.options.model_path)
        if self._is_repository:
            yield from ()
        elif not exists(path):
            # Other paths are looked for by ``config.machine``.
            if self.options.model_path.count("/") < 2 and not self.options.model_path.startswith(("/", ".")):
                yield Problem("model_path", f"{path} does not exist", "correct it, or put the weights there")
        elif is_file(path) and _begins_as_gguf(path):
            try:
                _read(str(path), file_identity(str(path)))
            except GgufUnreadable as error:
                yield Problem("model_path", error.reason, "if it is still being copied, wait for the end")
        if self._wants_gpu and self._value("fit") == "on":
            message = "with --fit on, layers go to the processor, or the context shrinks, when the GPU is not empty"
            yield Problem("extra_args", message, "remove it, and choose the context by --ctx-size")
        if llama_flags.is_on(self.options.extra_args, "direct-io") or self._value("load-mode") == "dio":
            message = "direct I/O leaves nothing in the page cache, so that each start reads the disk again"
            yield Problem("extra_args", message, "remove it")

    # How it is started.

    def command_line(self, port: int, socket_path: Path | None = None) -> tuple[str, ...]:
        path = self.options.model_path
        if self._is_repository:
            weights: tuple[str, ...] = ("-hf", path.removeprefix(REPOSITORY_PREFIX), "--no-ui")
        else:
            weights = ("-m", path, "--no-ui", "--offline")
        own = ("--alias", self.options.name, "--host", LOOPBACK, "--port", str(port), "-np", str(self.slots))
        gpu: list[str] = []
        if self._wants_gpu:
            # Its own defaults would put layers on the processor where the GPU has too little memory, and say nothing.
            gpu += [] if self._value("n-gpu-layers") else ["-ngl", "all"]
            gpu += [] if self._value("fit") else ["--fit", "off"]
        directory = self._prompts_directory
        save = () if directory is None or not is_directory(directory) else ("--slot-save-path", str(directory))
        adapters = [word for file in self.options.adapters.values() for word in ("--lora", file)]
        return (self.options.program, *weights, *own, *gpu, *save, *adapters, *self.options.extra_args)

    def environment(
        self, inherited: Mapping[str, str], temporary_directory: str, *, checkpointable: bool
    ) -> dict[str, str]:
        kept = {
            name: value
            for name, value in inherited.items()
            if name not in _REMOVED_VARIABLES and not name.startswith(VARIABLE_PREFIX)
        }
        return super(LlamaCpp, self).environment(kept, temporary_directory, checkpointable=checkpointable)

    def files(self) -> Iterator[Path]:
        model = self._readable_model()
        yield from super(LlamaCpp, self).files() if model is None else model.files
        yield from (Path(file) for file in self.options.adapters.values() if is_file(file))
        for given in llama_flags.read(self.options.extra_args):
            if given.flag is not None and given.flag.name in _FILE_FLAGS:
                # The scaled ones have a factor after the name of the file.
                named = [piece.rpartition(":")[0] or piece for piece in given.value.split(",")]
                yield from (Path(piece) for piece in (*named, *given.value.split(",")) if is_file(piece))

    def files_to_load(self, environment: Mapping[str, str]) -> Sequence[Path]:
        files, directory = super(LlamaCpp, self).files_to_load(environment), self._prompts_directory
        # They are restored right after the start.
        return files if directory is None else (*files, *prompt_files_in(directory))

    def prepare_start(self, image_made_at: float | None = None) -> object:
        if image_made_at is None and self._wants_gpu:
            self._look_for_gpu()
        directory, model = self._prompts_directory, self._readable_model()
        if directory is None or model is None:
            return None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            token_bytes = model.kv_bytes(1, self._value("cache-type-k") or "f16", self._value("cache-type-v") or "f16")
        except (OSError, ValueError) as error:
            log.warning("prompts are not saved", model=self.options.name, reason=str(error))
            return None
        files = PromptFiles(directory, self.options.saved_prompts_bytes)
        identity = identity_of(model.files, self.command_line(0)[1:])
        return Prompts(self.options.name, SavedPrompts(files, identity, token_bytes), image_made_at)

    def _look_for_gpu(self) -> None:
        """Raises NoGpu if the program is known to find none."""
        environment = tuple(sorted(self.options.environment.items()))
        program = self.options.program
        try:
            has_gpu = _has_gpu(program, file_identity(program), environment)
        except (OSError, subprocess.SubprocessError):
            # The start itself will tell what is wrong.
            return
        if not has_gpu:
            _has_gpu.cache_clear()
            raise NoGpu(Path(program).name)

    @property
    def _prompts_directory(self) -> Path | None:
        """Where prompts are saved; None if they are not."""
        words, cache = self.options.extra_args, self.options.cache_directory
        has_prompts = not any(llama_flags.is_on(words, name) for name in ("embeddings", "reranking"))
        is_told = llama_flags.is_on(words, "slots", default=True)
        if cache is None or not self.options.saved_prompts_bytes or not has_prompts or not is_told:
            return None
        if self.options.adapters:
            # A file does not tell with which of them its prompt was read.
            return None
        return None if self._is_repository else cache / self.kind / "prompts" / digest(self.options.name)

    # What it says.

    async def find_abilities(self, endpoints: Endpoints, *, freezes: bool) -> Abilities:
        try:
            properties = await endpoints.get("/props", self.options.timeouts.read_back_seconds)
            length = properties["default_generation_settings"]["n_ctx"]
        except (ControlCallFailed, LookupError, TypeError):
            length = None
        # Suspended with its whole process: a dump freezes it at any point.
        return Abilities(keeps_requests=freezes, max_model_length=length if isinstance(length, int) else None)

    # How it leaves and comes back.

    def steps(self, eviction: Eviction, *, freeze: bool = False) -> tuple[Step, ...]:
        if eviction.process is Process.STOP and self._prompts_directory is not None:
            return (SavePrompts(), StopProcess())
        return super(LlamaCpp, self).steps(eviction, freeze=freeze)

    def why_not(self, eviction: Eviction) -> str | None:
        if super(LlamaCpp, self).why_not(eviction) is None:
            return None
        if eviction.process is Process.KEEP_RUNNING:
            return f"llama-server holds its GPU memory as long as it runs, so that it cannot leave by '{eviction}'"
        if eviction.process is Process.CHECKPOINT and eviction.weights is not Weights.RETAIN:
            return f"llama-server's weights cannot leave before an image is made, as '{eviction}' asks"
        return f"llama-server cannot leave by '{eviction}'"

    async def came_back(self, endpoints: Endpoints, state: object) -> None:
        if isinstance(state, Prompts):
            await state.restore(endpoints)


class Prompts:
    """The saved prompts of one start: restored once, after its canary."""

    def __init__(self, model: str, saved: SavedPrompts, image_made_at: float | None = None) -> None:
        """``image_made_at``: when the slots were as they are when it starts; None if they are empty."""
        self._model = model
        self._saved = saved
        self._newer_than_ns = 0 if image_made_at is None else int(image_made_at * 1e9)
        self._are_restored = False

    async def save(self, endpoints: Endpoints) -> None:
        """Save what the slots hold, before the engine ends; never fails."""
        self._report("prompts saved", await self._saved.save(endpoints, SAVE_SECONDS))

    async def restore(self, endpoints: Endpoints) -> None:
        """Restore what was saved, unless the engine has kept it; never fails."""
        if not self._are_restored:
            self._are_restored = True
            report = await self._saved.restore(endpoints, RESTORE_SECONDS, newer_than_ns=self._newer_than_ns)
            self._report("prompts restored", report)

    def _report(self, what: str, report: Report) -> None:
        if not report.prompts and not report.unchanged and not report.left_out:
            return
        log.info(
            what,
            model=self._model,
            conversations=len(report.prompts),
            tokens=report.tokens,
            mib=round(report.size_bytes / 2**20),
            seconds=round(report.seconds, 2),
            left_out="; ".join(map(str, report.left_out)) or None,
        )


@dataclass(frozen=True, slots=True)
class SavePrompts:
    """The prompts of the slots are written to files. There is nothing to undo: they are restored after the canary."""

    keeps_requests: ClassVar[bool] = False
    leaves_process: ClassVar[Process] = Process.KEEP_RUNNING
    leaves_weights: ClassVar[None] = None

    def __str__(self) -> str:
        return "save prompts"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        if isinstance(engine.state, Prompts) and not is_suspended(engine):
            await engine.perform(engine.state.save(engine.endpoints), "saving its prompts")
        return ()

    async def undo(self, engine: EngineControls) -> None:
        pass


def _why_refused(flag: llama_flags.Flag | None, written: str) -> tuple[str, str] | None:
    """The reason and the remedy, if the flag is refused."""
    if flag is not None and flag.name in _REFUSED and written not in flag.negatives:
        return _REFUSED[flag.name]
    prefixes = (why for prefix, why in _REFUSED_PREFIXES.items() if written.replace("_", "-").startswith(prefix))
    return next(prefixes, None)


def _begins_as_gguf(path: Path) -> bool:
    """False only if it was read and begins otherwise."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return True


@lru_cache(maxsize=256)
def _read(path: str, identity: str) -> GgufModel:
    """A model's file as long as it stays the same, which ``identity`` tells."""
    return read_model(Path(path))


@lru_cache(maxsize=64)
def _has_gpu(program: str, identity: str, environment: tuple[tuple[str, str], ...]) -> bool:
    """Whether the program, as ``identity`` tells it from others, lists a device. Raises OSError, SubprocessError."""
    listed = subprocess.run(
        [program, "--list-devices"],
        env={**os.environ, **dict(environment)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEVICES_SECONDS,
        check=True,
    )
    lines = (listed.stdout + listed.stderr).decode(errors="replace").splitlines()
    heading = next((number for number, line in enumerate(lines) if line.startswith("Available devices")), None)
    # A version that does not list them as expected is believed to have one.
    return heading is None or any(_DEVICE.match(line) for line in lines[heading + 1 :])
