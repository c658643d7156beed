"""The command line of the simulated engine: vLLM's flags, most of them without effect, and our own."""

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmux.simulation.engine import vllm_flags
from llmux.simulation.engine.faults import Faults
from llmux.simulation.engine.own_flags import OwnFlags, gather, positive

OTHER_KINDS = (
    "``--sim-kind KIND`` as the first argument (or LLMUX_SIM_KIND) imitates another engine, with a command line of its "
    "own: try ``--sim-kind sglang --help``, or a wrong kind for a list."
)


@dataclass(slots=True)
class Timings:
    """How long the engine takes, in seconds; ``/control`` changes it while the engine runs."""

    first_token_seconds: float = 0.05
    token_seconds: float = 0.0
    full_batch_token_seconds: float = 0.0
    """In a full batch; in between, the rate falls linearly from that of ``token_seconds``. 0: batching is free."""
    prefill_tokens_per_second: float = 0.0
    """0: prefills take no time."""
    sleep_seconds: float = 0.0
    wake_seconds: float = 0.0
    reload_seconds: float = 0.1
    free_seconds: float = 0.0
    """From the answer that says that memory is free until it is. Only for kinds that answer too early."""

    def before_token(self, batch_share: float = 0.0) -> float:
        """Seconds before each token but the first; ``batch_share`` is 0 for a lone request and 1 in a full batch."""
        if not self.full_batch_token_seconds or not self.token_seconds:
            return self.token_seconds
        alone, full = 1 / self.token_seconds, 1 / self.full_batch_token_seconds
        return 1 / (alone - (alone - full) * batch_share)

    def prefill_seconds(self, prompt_tokens: int) -> float:
        """Seconds of prefill, which runs for one prompt at a time."""
        return prompt_tokens / self.prefill_tokens_per_second if self.prefill_tokens_per_second else 0.0


@dataclass(frozen=True, slots=True)
class Adapter:
    """One LoRA adapter of ``--lora-modules``."""

    name: str
    path: str
    base_model_name: str | None = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What one simulated engine is started with, other than its timings and faults."""

    model: str
    served_names: tuple[str, ...]
    adapters: tuple[Adapter, ...] = ()
    lora: bool = False
    """Without it, an engine that is given adapters does not start."""
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    root_path: str = ""
    allowed_origins: tuple[str, ...] = ()
    """The origins whose pages may read the answers."""
    api_keys: tuple[str, ...] = ()
    sleep_mode: bool = False
    development_mode: bool = False
    stays_when_dead: bool = False
    max_running: int = 256
    max_model_tokens: int = 131072
    kv_offloading_gib: float = 0.0
    """More than 0: the KV cache is in host memory, too. How much of it there is, is not looked at."""
    keep_alive_seconds: float = 5.0
    shutdown_timeout_seconds: float = 0.0
    startup_delay_seconds: float = 0.0
    stop_delay_seconds: float = 0.0
    ledger_path: str | None = None
    gpu_memory_mib: int | None = None
    gpu_memory_utilization: float = 0.92
    residue_mib: int = 0
    hold_memory_mib: int = 0
    reads_weights: bool = False
    """Whether the model's files are read when its weights are loaded, as a real engine does."""
    worker: bool = False
    ranks: int = 1
    """Worker processes, each with its part of the memory; more than one make ``worker`` true."""
    worker_linger_seconds: float = 3.0

    @property
    def name(self) -> str:
        """The first served name, which appears in every response but an adapter's."""
        return self.served_names[0]

    def answering_name(self, asked: str | None) -> str | None:
        """The name that answers a request for a name, or for none, carry; None if it is not served."""
        if any(adapter.name == asked for adapter in self.adapters):
            return asked
        return self.name if not asked or asked in self.served_names else None


def parse(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> tuple[EngineOptions, Timings, Faults]:
    """Parse a command line of vLLM (``serve MODEL ...``) or of 0.7.7's mock engine (``--model NAME ...``).

    Each of our own flags has an environment variable: ``--sim-wake-ms`` is ``LLMUX_SIM_WAKE_MS``, ``--latency-ms`` is
    ``LLMUX_SIM_LATENCY_MS``. As with vLLM, flags may be abbreviated. Exits with code 2 on a bad value and on a
    word that vLLM does not know either.
    """
    parser = _parser()
    flags = _add_own_flags(parser, environment)
    normal = [_normal(argument) for argument in arguments]
    serve, rest = normal[:1] == ["serve"], normal
    positional = None
    if serve:
        rest = normal[1:]
        if rest and not rest[0].startswith("-"):
            positional, rest = rest[0], rest[1:]
    given, unknown = parser.parse_known_args(rest)
    if serve and positional is None and given.model is None:
        positional = next((word for word in reversed(unknown) if not word.startswith("-")), None)
        unknown = [word for word in unknown if word != positional]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    model = positional or given.model
    if model is None:
        parser.error("no model: say 'serve MODEL' or '--model NAME'")
    faults = flags.faults(given)
    given.model = model
    given.served_names = tuple(given.served_names or [model])
    given.adapters = tuple(adapter for adapter in given.adapters if adapter is not None)
    given.api_keys = tuple(given.api_keys or filter(None, [environment.get("VLLM_API_KEY")]))
    given.development_mode = environment.get("VLLM_SERVER_DEV_MODE") == "1"
    given.stays_when_dead = environment.get("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH") == "1"
    given.keep_alive_seconds = float(environment.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "5"))
    return gather(given, EngineOptions), gather(given, Timings), faults


def _parser() -> argparse.ArgumentParser:
    """Destinations are the fields of EngineOptions and Timings."""
    parser = argparse.ArgumentParser(prog="llmux-sim-engine", description=__doc__, epilog=OTHER_KINDS)
    vllm = parser.add_argument_group("vLLM's")
    vllm.add_argument("--model")
    vllm.add_argument("--served-model-name", nargs="+", dest="served_names", metavar="NAME")
    adapter = "NAME=PATH or a JSON object"
    vllm.add_argument(
        "--lora-modules", nargs="+", type=_adapter, default=(), dest="adapters", metavar="M", help=adapter
    )
    vllm.add_argument("--enable-lora", dest="lora", action=argparse.BooleanOptionalAction, default=False)
    vllm.add_argument("--host", default="127.0.0.1")
    vllm.add_argument("--port", type=int, default=8000, help="0: any; it is printed as READY PORT")
    vllm.add_argument("--uds", metavar="PATH", help="listen on a Unix socket instead of --host and --port")
    vllm.add_argument("--root-path", default="", metavar="PATH", help="a prefix of the paths that may be left out")
    vllm.add_argument("--allowed-origins", type=_words, default=(), metavar="JSON", help='a list, such as ["*"]; empty')
    vllm.add_argument("--api-key", nargs="+", dest="api_keys", metavar="KEY")
    vllm.add_argument("--enable-sleep-mode", dest="sleep_mode", action=argparse.BooleanOptionalAction, default=False)
    vllm.add_argument("--max-num-seqs", type=positive, default=256, dest="max_running", metavar="N")
    vllm.add_argument("--max-model-len", type=_length, default=131072, dest="max_model_tokens", metavar="N")
    vllm.add_argument("--kv-offloading-size", type=float, default=0.0, dest="kv_offloading_gib", metavar="GIB")
    share_flags = ("--gpu-memory-utilization", "--device-memory-utilization")
    vllm.add_argument(*share_flags, type=float, default=0.92, metavar="SHARE")
    vllm.add_argument("--shutdown-timeout", type=float, default=0.0, dest="shutdown_timeout_seconds", metavar="S")
    _add_flags_without_effect(parser)
    return parser


def _add_own_flags(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> OwnFlags:
    flags = OwnFlags(parser, environment)
    flags.add_common()
    flags.add_memory("--gpu-memory-utilization of the ledger's capacity")
    flags.add_worker()
    flags.add_ranks()
    flags.add("--sim-sleep-ms", "sleep_seconds", "MS", "0", "duration of /sleep (0)")
    flags.add("--sim-wake-ms", "wake_seconds", "MS", "0", "duration of /wake_up (0)")
    flags.add("--sim-reload-ms", "reload_seconds", "MS", "100", "duration of reload_weights (100)")
    return flags


def _add_flags_without_effect(parser: argparse.ArgumentParser) -> None:
    nowhere: dict[str, Any] = {"dest": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    for names in vllm_flags.WITH_VALUE:
        parser.add_argument(*names.split("|"), **nowhere)
    for names in vllm_flags.WITH_VALUES:
        parser.add_argument(*names.split("|"), nargs="+", **nowhere)
    for names in vllm_flags.NEGATABLE:
        parser.add_argument(*names.split("|"), action=argparse.BooleanOptionalAction, **nowhere)
    for names in vllm_flags.SWITCHES:
        parser.add_argument(*names.split("|"), action="store_true", **nowhere)


def _normal(argument: str) -> str:
    """As vLLM: ``_`` is ``-``, ``--flag.key VALUE`` is a member of the flag's JSON object, ``-O3`` is a level."""
    argument = re.sub(r"^-O(?=\d)", "--optimization-level=", argument)
    return re.sub(r"^(--[\w-]+)(\.[\w.+-]+)?", lambda flag: flag[1].replace("_", "-"), argument)


def _words(text: str) -> tuple[str, ...]:
    words = json.loads(text)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise argparse.ArgumentTypeError(f"{text} is no list of strings")
    return tuple(words)


def _adapter(text: str) -> Adapter | None:
    if not text:
        return None
    if "=" in text and "," not in text:
        return Adapter(*text.split("=", 1))
    try:
        return Adapter(**json.loads(text))
    except TypeError as error:
        raise argparse.ArgumentTypeError(f"invalid fields in {text}: {error}") from None


def _length(text: str) -> int:
    scale = {"k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}.get(text[-1:], 1)
    return int(float(text.rstrip("kKmM")) * scale)
