"""Kinds of engines that are described by data: a command, and the calls and paths that a command alone does not tell.

A description is a value; ``kind_of`` makes a kind of it, as the modules of this package are. The configuration has the
form in which descriptions are written, and reads the ones in ``descriptions/``.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic
from typing import Any, ClassVar, assert_never, cast
from urllib.parse import quote

from llmux.core.eviction import Eviction, Process, Weights
from llmux.engines.base import DEFAULT_MAX_IN_FLIGHT, HEALTH_PATH, Engine
from llmux.engines.calls import Endpoints
from llmux.engines.command import Command
from llmux.engines.paths import RequestRules
from llmux.engines.questions import CANARY, Question
from llmux.engines.steps import EngineControls, Step, has_taken
from llmux.errors import ControlCallFailed, Problem

POLL_SECONDS = 0.2
"""Between two readings of a state that a call is to lead to."""


class Relation(Enum):
    """How a field of an answer must stand to a value."""

    AT_LEAST = "at_least"
    AT_MOST = "at_most"
    EQUALS = "equals"
    EMPTY = "empty"
    """The value is whether it must be: an empty list, text or object, 0, false or null."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What a GET must show."""

    path: str
    field: str
    """Keys and indexes, joined by dots: ``devices.0.vram_free``."""
    relation: Relation
    value: Any

    def __str__(self) -> str:
        return f"{self.field} of {self.path} {self.relation.value.replace('_', ' ')} {self.value!r}"

    def holds(self, document: Any) -> bool:
        """Whether the answer shows it; raises ControlCallFailed if it has no such field."""
        found = field_of(document, self.path, self.field)
        match self.relation:
            case Relation.AT_LEAST | Relation.AT_MOST:
                if not isinstance(found, int | float):
                    raise ControlCallFailed(f"GET {self.path}", f"{self.field} is no number: {found!r}", 200)
                return bool(found >= self.value if self.relation is Relation.AT_LEAST else found <= self.value)
            case Relation.EQUALS:
                return bool(found == self.value)
            case Relation.EMPTY:
                return bool(found) is not self.value
            case _:
                assert_never(self.relation)


def field_of(document: Any, path: str, name: str) -> Any:
    """A field of what a GET answered; raises ControlCallFailed if it is not there."""
    found = document
    for part in name.split("."):
        try:
            found = found[int(part)] if isinstance(found, list) else found[part]
        except (LookupError, TypeError, ValueError):
            raise ControlCallFailed(f"GET {path}", f"an answer without {name}: {document!r}", 200) from None
    return found


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an engine's control interface, and what it leads to."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    until: Condition | None = None
    timeout_seconds: float | None = None
    """For both together; None: what is configured for all engines."""


@dataclass(frozen=True, slots=True)
class SleepCalls:
    """How an engine gives up its GPU memory and takes it again."""

    leave: tuple[Call, ...]
    come_back: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Busy:
    """Where an engine tells of work whose requests have been answered: any of the fields is not empty."""

    path: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What is known of a kind of engines."""

    name: str
    start_command: tuple[str, ...]
    stop_command: tuple[str, ...] = ()
    program: str = ""
    """The word of ``start_command`` that a model's own ``command`` takes the place of."""
    ready_path: str = HEALTH_PATH
    sleep: Mapping[Weights, SleepCalls] = field(default_factory=dict)
    busy: Busy | None = None
    rules: RequestRules = field(default_factory=RequestRules)
    out_of_memory: re.Pattern[str] = Engine.out_of_memory
    causes: tuple[tuple[re.Pattern[str], str], ...] = ()
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    needs_model_path: bool = False
    canary: bool = True


@dataclass(frozen=True, slots=True)
class Described(Command):
    """An engine of a kind that is described by data; a class of its own for each, made by ``kind_of``."""

    description: ClassVar[Description]
    own_keys: ClassVar[frozenset[str]] = frozenset(("stop_command", "ready_path", "api_key"))

    @property
    def start_words(self) -> tuple[str, ...]:
        words, named = self.description.start_command, self.default_program
        return tuple(self.options.program if word == named else word for word in words)

    @property
    def stop_words(self) -> tuple[str, ...]:
        return self.options.stop_command or self.description.stop_command

    @property
    def health_path(self) -> str:
        return self.options.ready_path or self.description.ready_path

    def program_problem(self) -> Problem | None:
        return None

    def steps(self, eviction: Eviction, *, freeze: bool = False) -> tuple[Step, ...]:
        calls = self.description.sleep.get(eviction.weights)
        if calls is None or eviction.process is not Process.KEEP_RUNNING:
            return super(Described, self).steps(eviction, freeze=freeze)
        timeouts = self.options.timeouts
        return (
            SleepByCalls(
                eviction.weights,
                tuple(self._prepared(call, timeouts.sleep_seconds) for call in calls.leave),
                tuple(self._prepared(call, timeouts.wake_seconds) for call in calls.come_back),
            ),
        )

    def _prepared(self, call: Call, timeout_seconds: float) -> Call:
        """The call with its placeholders replaced, and a time limit."""
        path = _replaced(call.path, {key: quote(value, safe="/:") for key, value in self._values.items()})
        body = None if call.body is None else cast("Mapping[str, Any]", _replaced_in(call.body, self._values))
        return Call(call.method, path, body, call.until, call.timeout_seconds or timeout_seconds)

    @property
    def _values(self) -> dict[str, str]:
        return {"{model}": self.options.model_path, "{name}": self.name_in_commands}

    async def has_work(self, endpoints: Endpoints) -> bool:
        busy = self.description.busy
        if busy is None:
            return False
        document = await endpoints.get(busy.path, self.options.timeouts.read_back_seconds)
        # All of them, so that a field that is missing is noticed at once.
        found = [field_of(document, busy.path, name) for name in busy.fields]
        return any(found)


def kind_of(description: Description) -> type[Described]:
    """The kind that a description describes."""
    canary: Question | None = CANARY if description.canary else None
    about = {
        "__slots__": (),
        "__doc__": f"A {description.name} engine, which is described by data.",
        "__module__": __name__,
        "description": description,
        "kind": description.name,
        "default_program": description.program or description.start_command[0],
        "works_after_answering": description.busy is not None,
        "needs_model_path": description.needs_model_path,
        "max_in_flight_default": description.max_in_flight,
        "rules": description.rules,
        "out_of_memory": description.out_of_memory,
        "causes": description.causes,
        "canary": canary,
    }
    return cast("type[Described]", type(f"Described[{description.name}]", (Described,), about))


@dataclass(frozen=True, slots=True)
class SleepByCalls:
    """The engine itself releases its GPU memory, asked by calls that its description lists, and keeps running."""

    weights: Weights
    leave: tuple[Call, ...]
    come_back: tuple[Call, ...]
    keeps_requests: ClassVar[bool] = False
    leaves_process: ClassVar[Process] = Process.KEEP_RUNNING

    @property
    def leaves_weights(self) -> Weights:
        return self.weights

    def __str__(self) -> str:
        return f"calls {self.weights}"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        if has_taken(engine, SleepByCalls):
            return ()
        await engine.perform(perform_calls(engine.endpoints, self.leave), "going to sleep")
        return (self,)

    async def undo(self, engine: EngineControls) -> None:
        await engine.perform(perform_calls(engine.endpoints, self.come_back), "waking up")


async def perform_calls(endpoints: Endpoints, calls: Sequence[Call]) -> None:
    """Make the calls in order, each until what it leads to is there. Raises ControlCallFailed."""
    for call in calls:
        limit_seconds = call.timeout_seconds or 0.0
        give_up_at = monotonic() + limit_seconds
        await endpoints.request(call.method, call.path, limit_seconds, call.body)
        if call.until is not None:
            await _read_until(endpoints, call.until, give_up_at)


async def _read_until(endpoints: Endpoints, wanted: Condition, give_up_at: float) -> None:
    """Poll until it is so. A poll that fails is not the last one: the engine may be too busy to answer."""
    call = f"GET {wanted.path}"
    said = "there was no time to ask"
    while (left_seconds := give_up_at - monotonic()) > 0:
        try:
            document = await endpoints.get(wanted.path, left_seconds)
            if wanted.holds(document):
                return
            said = f"it says {document!r}"
        except ControlCallFailed as failure:
            said = str(failure)
        await asyncio.sleep(min(POLL_SECONDS, max(0.0, give_up_at - monotonic())))
    raise ControlCallFailed(call, f"not so in time: {wanted}; {said}", is_timeout=True)


def _replaced(text: str, values: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], text)


def _replaced_in(value: Any, values: Mapping[str, str]) -> Any:
    match value:
        case str():
            return _replaced(value, values)
        case Mapping():
            return {key: _replaced_in(item, values) for key, item in value.items()}
        case list() | tuple():
            return [_replaced_in(item, values) for item in value]
        case _:
            return value
