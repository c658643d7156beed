"""Exceptions that one package raises and another one handles by their class, or that several packages raise.

With the values that they carry: why an engine failed, how far a start is, what is wrong with a configuration.

All others stay beside the code that raises them: those that only their own package catches, and those that are handled
as any ``LlmuxError`` is, by reporting the message. Those that only the use of HTTP can cause are in
``gateway/errors.py``.

Attributes carry the facts. The message says what happened and, if the reader can do something, what. It may name
configuration keys, but neither paths nor headers: the gateway, which renders errors for clients, adds those
(``gateway/answers.py``).
"""

import errno
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FailureReason:
    """Why an engine failed, for the operator: with what it printed last and what it answered.

    ``cause`` is the part that clients are told: what an engine prints may hold anything (prompts, paths, its
    arguments). Empty: the whole text, which is llmux's own.
    """

    text: str
    cause: str = ""

    def __str__(self) -> str:
        return self.text

    @property
    def for_clients(self) -> str:
        """What clients are told."""
        return self.cause or self.text


class LlmuxError(Exception):
    """Root of the errors that are reported by their message alone: a traceback would add nothing."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a configuration: the path of the key, what is wrong, and what to do about it."""

    path: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"{self.path}: {self.message}{remedy}" if self.path else f"{self.message}{remedy}"


class ConfigError(LlmuxError):
    """A configuration that cannot be used, with all of its problems."""

    def __init__(self, problems: Sequence[Problem], source: str = "") -> None:
        self.problems = tuple(problems)
        self.source = source
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source or 'configuration'}: {len(self.problems)} problem(s)\n{lines}")


class RequestError(LlmuxError):
    """A request that llmux itself answers, with an error. The gateway maps each subclass to a status and a code."""


class ModelNotFound(RequestError):
    """The model is not configured. ``known`` are those that are, if the message shall list them."""

    def __init__(self, model: str, known: Sequence[str]) -> None:
        self.model = model
        self.known = tuple(known)
        shown = ", ".join(self.known[:20]) + (", ..." if len(self.known) > 20 else "")
        remedy = f"; configured models: {shown}" if known else ""
        alike = next((name for name in self.known if _without_blanks(name) == _without_blanks(model)), None)
        if alike is None:
            super().__init__(f"the model '{model[:200]}' does not exist{remedy}")
        else:
            super().__init__(
                f"the model {model[:200]!a} does not exist, but {alike!a} does: they differ only in white space or in "
                "how Unicode writes a character"
            )


def _without_blanks(name: str) -> str:
    return unicodedata.normalize("NFKC", "".join(name[:400].split()))


class QueueFull(RequestError):
    """The queue has reached one of its limits, which ``limit`` names."""

    forecast_seconds: float | None = None
    """How long those that wait already are expected to: when it is worth trying again; None where nobody can tell."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"too many requests are waiting ({limit}); try again later")


@dataclass(frozen=True, slots=True)
class StartProgress:
    """A cold start that is under way. ``left_seconds`` is None where no earlier start tells how long it takes."""

    elapsed_seconds: float
    left_seconds: float | None = None

    def __str__(self) -> str:
        left = "" if self.left_seconds is None else f", about {self.left_seconds:.0f} s to go"
        return f"it is still starting, {self.elapsed_seconds:.0f} s so far{left}"


class Overloaded(RequestError):
    """The request would probably wait for longer than its class may, and was refused when it came.

    ``batch_waits``: the same as a batch request would not have been.
    """

    def __init__(self, model: str, forecast_seconds: float, limit_seconds: float, *, batch_waits: bool) -> None:
        self.forecast_seconds = forecast_seconds
        self.retry_after_seconds = forecast_seconds - limit_seconds
        super().__init__(
            f"more is asked of the GPUs than they can do: a request for the model '{model}' is expected to wait "
            f"{forecast_seconds:.0f} s, longer than the {limit_seconds:g} s that requests of its class may wait here "
            f"(refuse_after_seconds); try again in {max(1.0, self.retry_after_seconds):.0f} s"
            + (", or send it as a batch request (x-llmux-priority: batch), which waits" if batch_waits else "")
        )


class QueueTimeout(RequestError):
    """The request waited for its model longer than ``request_timeout_seconds``; ``start``: its model is starting."""

    forecast_seconds: float | None = None
    """How long a request that comes now is expected to wait; None where nobody can tell."""

    def __init__(self, model: str, waited_seconds: float, start: StartProgress | None = None) -> None:
        self.model = model
        self.waited_seconds = waited_seconds
        self.start = start
        starting = "" if start is None else f"; {start}"
        super().__init__(
            f"waited {waited_seconds:.1f} s for the model '{model}', longer than request_timeout_seconds{starting}"
        )


class ModelNotAllowed(RequestError):
    """Another model is pinned or, in manual mode, active. ``active`` is None if no model is.

    ``stays``: others are served beside that one, but this one cannot be.
    """

    def __init__(self, requested: str, active: str | None, *, stays: bool = False) -> None:
        self.requested = requested
        self.active = active
        self.stays = stays
        if stays:
            super().__init__(
                f"the model '{requested}' cannot be served beside '{active}', which stays on the GPUs: they do not fit "
                "together, or their group is exclusive"
            )
            return
        super().__init__(
            f"llmux is in manual mode: the model '{requested}' was requested, the active model is '{active or 'none'}'"
        )


class ModelNotLoaded(RequestError):
    """The model is not on the GPU, and the request may not wake it (``Request.may_wake``)."""

    def __init__(self, model: str, start: StartProgress | None = None) -> None:
        self.start = start
        starting = "" if start is None else f"; {start}"
        super().__init__(f"the model '{model}' is not on the GPU and a request of this kind does not wake it{starting}")


class ShuttingDown(RequestError):
    """llmux is shutting down and accepts no more requests."""

    def __init__(self) -> None:
        super().__init__("llmux is shutting down")


class Evicted(RequestError):
    """The model left the GPU before the response was complete: its drain took too long, or it does not drain."""

    def __init__(self, model: str) -> None:
        super().__init__(f"the model '{model}' had to leave the GPU before this answer was complete; send it again")


class EngineError(RequestError):
    """A model's engine failed."""

    def __init__(self, model: str, message: str) -> None:
        self.model = model
        super().__init__(message)


class EngineUnavailable(EngineError):
    """The engine could not be started. The next try is in ``retry_after_seconds``."""

    def __init__(self, model: str, reason: FailureReason, retry_after_seconds: float) -> None:
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        super().__init__(
            model,
            f"the engine of '{model}' could not be started: {reason.for_clients}; "
            f"next try in {retry_after_seconds:.0f} s",
        )


class EngineDied(EngineError):
    """The engine died while it had the request, and llmux does not try again."""

    def __init__(self, model: str, reason: FailureReason | None = None) -> None:
        cause = "" if reason is None else f": {reason.for_clients}"
        super().__init__(model, f"the engine of '{model}' died before it answered{cause}")


class CommandFailed(LlmuxError):
    """An operator's command (switch, pin, sleep, wake) failed."""


class SpawnFailed(LlmuxError):
    """An engine's process could not be created. One that starts and then exits is not meant."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the engine could not be started: {reason}")


class DumpFailed(LlmuxError):
    """An engine could not be dumped into an image. It keeps running unless ``engine_runs`` is false."""

    def __init__(self, reason: str, *, engine_runs: bool = True) -> None:
        self.reason = reason
        self.engine_runs = engine_runs
        engine = "it runs on" if engine_runs else "it has ended"
        super().__init__(f"the engine could not be put into an image ({engine}): {reason}")


class RestoreFailed(LlmuxError):
    """An engine could not be restored; nothing but the image is left. ``is_passing``: the image is not the cause."""

    def __init__(self, reason: str, *, is_passing: bool = False) -> None:
        self.reason = reason
        self.is_passing = is_passing
        super().__init__(f"the engine could not be restored from its image: {reason}")


class GpusUnreadable(LlmuxError):
    """The GPUs' memory cannot be read on this machine."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no GPU can be read here: {reason}")


class ImageUnusable(LlmuxError):
    """An image from which no engine can ever be restored. It can be deleted."""

    def __init__(self, path: object, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the image {path} cannot be used: {reason}")


class CriuUnusable(LlmuxError):
    """criu is missing, too old, or lacks the privileges that it needs."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"criu cannot be used: {reason}")


class ProcessStuck(LlmuxError):
    """Processes of an engine survived SIGKILL, so the memory that they hold is not free."""

    def __init__(self, pids: Sequence[int], waited_seconds: float) -> None:
        self.pids = tuple(pids)
        self.waited_seconds = waited_seconds
        named = ", ".join(map(str, self.pids[:20])) or "unknown"
        super().__init__(
            f"processes of the engine (pid {named}) are still there {waited_seconds:.1f} s after the order to stop; "
            "one that SIGKILL does not end usually hangs in a driver call: see dmesg and nvidia-smi"
        )


_FAULTS_OF_A_PORT = (errno.EADDRINUSE, errno.EACCES, errno.EPERM)
_LISTEN_REMEDIES = {
    "host": "set host to an address of this machine",
    "port": "set port to another one, or stop what listens there",
    "metrics_port": "set metrics_port to another port, or to 0 for none",
    "admin_port": "set admin_port to another port, or remove it for none",
}


class ListenFailed(LlmuxError):
    """An address could not be bound."""

    def __init__(self, key: str, host: str, port: int, error: OSError) -> None:
        """``key`` is the configuration's, for the port. An address that cannot be used is the key ``host``'s fault."""
        if error.errno not in _FAULTS_OF_A_PORT:
            key = "host"
        self.key = key
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # An errno below 0 is one of getaddrinfo's, of which strerror knows nothing.
        number = error.errno or 0
        self.reason = os.strerror(number).lower() if number > 0 else error.strerror or str(error)
        super().__init__(f"cannot listen on {self.address} ({key}): {self.reason}; {_LISTEN_REMEDIES[key]}")


class EvictionRefused(LlmuxError):
    """The operator asked for an eviction that this configuration cannot perform."""


class UnsupportedEviction(Exception):
    """An eviction that an engine cannot take. Not an LlmuxError: whoever asks for steps must handle it."""

    def __init__(self, eviction: object, reason: str = "it has no steps for that") -> None:
        super().__init__(f"this engine cannot leave by '{eviction}': {reason}")


class ControlCallFailed(Exception):
    """A call of an engine's own endpoints had no usable response. ``status`` is None if there was no response at all.

    Not an LlmuxError: whoever calls an engine must decide what the failure means.
    """

    def __init__(self, call: str, reason: str, status: int | None = None, *, is_timeout: bool = False) -> None:
        self.call = call
        self.status = status
        self.is_timeout = is_timeout
        super().__init__(f"{call}: {reason}")

    @property
    def cause(self) -> str:
        """What clients are told: neither the engine's address nor what it answered."""
        if self.is_timeout:
            return f"the engine did not answer {self.call} in time"
        return f"the engine did not answer {self.call}" + (f" but with status {self.status}" if self.status else "")
