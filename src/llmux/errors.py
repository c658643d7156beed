"""Every exception of ours; knows nothing of HTTP.

Attributes carry the facts, ``__str__`` makes the sentence: what happened, and what to do about it.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class LlmuxError(Exception):
    """The root of all of llmux's own errors."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where it is, what is wrong, and what to do."""

    path: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"{self.path}: {self.message}{remedy}" if self.path else f"{self.message}{remedy}"


class ConfigError(LlmuxError):
    """A configuration that cannot be used; carries all of its problems, not only the first."""

    def __init__(self, problems: Sequence[Problem], source: str = "") -> None:
        self.problems = tuple(problems)
        self.source = source
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source or 'configuration'}: {len(self.problems)} problem(s)\n{lines}")


class RequestError(LlmuxError):
    """A request that ends with an answer of llmux's own instead of the engine's."""


class MalformedRequest(RequestError):
    """The request cannot be understood: bad framing, not JSON, bad form."""


class MissingModel(RequestError):
    """The request names no model."""

    def __init__(self) -> None:
        super().__init__(
            'the request names no model: put a top-level "model" into the JSON body, a form field "model", '
            "a model-override header, or use /upstream/MODEL/..."
        )


class InvalidApiKey(RequestError):
    """Keys are configured and the request carries none of them."""

    def __init__(self) -> None:
        super().__init__("missing or wrong API key: send it as 'Authorization: Bearer KEY'")


class ModelNotFound(RequestError):
    """The model is not configured."""

    def __init__(self, model: str, known: Sequence[str]) -> None:
        self.model = model
        self.known = tuple(known)
        shown = ", ".join(self.known[:20]) + (", ..." if len(self.known) > 20 else "")
        remedy = f"configured models: {shown}" if known else "GET /v1/models lists those that do"
        super().__init__(f"the model '{model[:200]}' does not exist; {remedy}")


class PathForbidden(RequestError):
    """An engine's control path, which llmux never forwards."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path[:200]} is an engine control path and is not forwarded; use /control instead")


class RequestTooLarge(RequestError):
    """The body exceeds ``max_body_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(f"the request body is larger than {limit_bytes} bytes (max_body_bytes)")


class QueueFull(RequestError):
    """The bounded queue has no room for the request."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"too many requests are waiting ({limit}); try again later")


class QueueTimeout(RequestError):
    """The request waited longer than ``request_timeout_seconds`` for its model."""

    def __init__(self, model: str, waited_seconds: float) -> None:
        self.model = model
        self.waited_seconds = waited_seconds
        super().__init__(f"waited {waited_seconds:.1f} s for the model '{model}', longer than request_timeout_seconds")


class ModelNotAllowed(RequestError):
    """Manual mode: another model is pinned or active."""

    def __init__(self, requested: str, active: str | None) -> None:
        self.requested = requested
        self.active = active
        super().__init__(
            f"llmux is in manual mode: the model '{requested}' was requested, the active model is "
            f"'{active or 'none'}'; use /control/switch or /control/unpin"
        )


class ModelNotLoaded(RequestError):
    """A request that may not wake a model (a GET) came for one that is not on the GPU."""

    def __init__(self, model: str) -> None:
        super().__init__(f"the model '{model}' is not on the GPU and a request of this kind does not wake it")


class ShuttingDown(RequestError):
    """llmux is stopping and takes no more requests."""

    def __init__(self) -> None:
        super().__init__("llmux is shutting down")


class Evicted(RequestError):
    """The model left the GPU before the request's answer was complete."""

    def __init__(self, model: str) -> None:
        super().__init__(f"the model '{model}' had to leave the GPU before this answer was complete; send it again")


class EngineError(RequestError):
    """Something is wrong with a model's engine."""

    def __init__(self, model: str, message: str) -> None:
        self.model = model
        super().__init__(message)


class EngineUnavailable(EngineError):
    """The engine could not be started, and llmux waits before it tries again."""

    def __init__(self, model: str, reason: str, retry_after_seconds: float) -> None:
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        super().__init__(
            model, f"the engine of '{model}' could not be started: {reason}; next try in {retry_after_seconds:.0f} s"
        )


class EngineDied(EngineError):
    """The engine died under the request, as often as llmux was willing to try."""

    def __init__(self, model: str, reason: str = "") -> None:
        super().__init__(model, f"the engine of '{model}' died before it answered" + (f": {reason}" if reason else ""))


class BadGateway(EngineError):
    """The engine was admitted to but could not be reached or broke off its answer."""


class CommandFailed(LlmuxError):
    """An operator's command (switch, pin, sleep, wake) did not succeed."""


class SpawnFailed(LlmuxError):
    """An engine's process could not be started at all."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the engine could not be started: {reason}")


class DumpFailed(LlmuxError):
    """An engine could not be put into an image.

    It runs on, unless ``engine_runs`` says that it ended with the attempt.
    """

    def __init__(self, reason: str, *, engine_runs: bool = True) -> None:
        self.reason = reason
        self.engine_runs = engine_runs
        what_became = "it runs on" if engine_runs else "it has ended"
        super().__init__(f"the engine could not be put into an image ({what_became}): {reason}")


class RestoreFailed(LlmuxError):
    """An engine could not be brought back from its image now; nothing of it is left but the image."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the engine could not be restored from its image: {reason}")


class StayRefused(LlmuxError):
    """An engine could not be let run on by itself."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engine could not be left running: {reason}")


class GpusUnreadable(LlmuxError):
    """The memory of the GPUs cannot be read on this machine."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no GPU can be read here: {reason}")


class ImageUnusable(LlmuxError):
    """An image from which no engine can be restored, now or later; it may as well be deleted."""

    def __init__(self, path: object, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the image {path} cannot be used: {reason}")


class CriuUnusable(LlmuxError):
    """criu is missing, too old, or may not do its work here; nothing can be put into an image."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"criu cannot be used: {reason}")


class ProcessStuck(LlmuxError):
    """Processes of an engine are still there though they have been killed; what they hold is not free."""

    def __init__(self, pids: Sequence[int], waited_seconds: float) -> None:
        self.pids = tuple(pids)
        self.waited_seconds = waited_seconds
        named = ", ".join(map(str, self.pids[:20])) or "unknown"
        super().__init__(
            f"processes of the engine (pid {named}) are still there {waited_seconds:.1f} s after the order to stop; "
            "one that SIGKILL does not end usually hangs in a driver call: see dmesg and nvidia-smi"
        )


class InvalidJson(MalformedRequest):
    """The body had to be JSON and is not."""


class UnknownPath(RequestError):
    """No route of llmux's has this path."""

    def __init__(self, path: str) -> None:
        super().__init__(f"no such path: {path[:200]}; inference is under /v1, or under /upstream/MODEL")


class MethodNotAllowed(RequestError):
    """The path exists, but not with this method."""

    def __init__(self, method: str, path: str, allowed: Sequence[str]) -> None:
        self.allowed = tuple(allowed)
        super().__init__(f"{method} is not possible on {path[:200]}; use {' or '.join(self.allowed)}")


class HeadTooLarge(RequestError):
    """Request line and headers exceed their limit together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(f"the request's headers are larger than {limit_bytes} bytes")


class RequestStalled(RequestError):
    """The client began a request and did not send the rest of it in time."""

    def __init__(self, part: str, limit_seconds: float) -> None:
        super().__init__(f"the request's {part} did not arrive within {limit_seconds:g} s")


class UpgradeRefused(RequestError):
    """The client asked for another protocol on its connection (WebSocket, CONNECT, h2c)."""

    def __init__(self) -> None:
        super().__init__("protocol upgrades (WebSocket, CONNECT) are not supported; use plain HTTP/1.1")


class ListenFailed(LlmuxError):
    """An address could not be bound, so llmux does not start."""

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        self.reason = reason
        super().__init__(f"cannot listen on {address}: {reason}; free the port or choose another one")


class OutputMismatch(LlmuxError):
    """An engine came back from its sleep saying something else than before."""

    def __init__(self, expected: str, heard: str) -> None:
        self.expected = expected
        self.heard = heard
        super().__init__(f"after its wake the engine answers the canary with {heard}, before it was {expected}")


class EvictionRefused(LlmuxError):
    """An operator asked for an eviction that this configuration cannot perform."""
