"""The section ``engines``: kinds of engines described by data, the user's own and those that llmux comes with."""

import re
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator
from pydantic_core import PydanticCustomError

from llmux.config.fields import CommandLine, Count, Flag, PositiveSeconds, Section, Text
from llmux.config.parse import parse
from llmux.core.eviction import Weights
from llmux.engines.base import DEFAULT_MAX_IN_FLIGHT, HEALTH_PATH, Engine
from llmux.engines.described import Busy, Call, Condition, Description, Relation, SleepCalls
from llmux.engines.paths import ANY, COMMON_ENDPOINTS, JSON, Endpoint, MediaType, RequestRules
from llmux.engines.registry import description_file

_CALL = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/\S*)")
_PATH = re.compile(r"/\S*")
_FIELD = re.compile(r"[^.\s]+(\.[^.\s]+)*")


def _matching(pattern: re.Pattern[str], code: str, sentence: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise PydanticCustomError(code, sentence)
        return text

    return check


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError) as error:
        raise PydanticCustomError("pattern", "is no regular expression: {reason}", {"reason": str(error)}) from None
    return text


UrlPath = Annotated[
    Text, AfterValidator(_matching(_PATH, "url_path", "must be a path of a URL, as /queue, without blanks"))
]
FieldPath = Annotated[
    Text, AfterValidator(_matching(_FIELD, "field_path", "must be keys and indexes joined by dots, as devices.0.free"))
]
CallText = Annotated[
    Text, AfterValidator(_matching(_CALL, "call", "must be a method and a path, as 'POST /free', in capital letters"))
]
Pattern = Annotated[Text, AfterValidator(_pattern)]
Scalar = StrictStr | StrictBool | StrictInt | StrictFloat


class BodyType(StrEnum):
    """What a POST to a path may carry."""

    JSON = "json"
    FORM = "form"
    ANY = "any"


_MEDIA_TYPES = {BodyType.JSON: JSON, BodyType.FORM: frozenset((MediaType.FORM,)), BodyType.ANY: ANY}


class ConditionSettings(Section):
    """What a GET of the engine must show."""

    path: UrlPath = Field(description="The path that is read, until it shows what it must or the call's time is up.")
    field: FieldPath = Field(description="The field of its JSON answer: keys and indexes joined by dots.")
    at_least: float | None = Field(default=None, description="The least number that it must be.")
    at_most: float | None = Field(default=None, description="The greatest number that it may be.")
    equals: Scalar | None = Field(default=None, description="What it must be equal to.")
    empty: Flag | None = Field(default=None, description="Whether it must be empty, 0 or null.")

    @model_validator(mode="after")
    def _one_relation(self) -> Self:
        if len(self._relations()) != 1:
            raise PydanticCustomError("one_relation", "must have exactly one of at_least, at_most, equals and empty")
        return self

    def _relations(self) -> list[tuple[Relation, Any]]:
        found = [(relation, getattr(self, relation.value)) for relation in Relation]
        return [(relation, value) for relation, value in found if value is not None]

    @property
    def condition(self) -> Condition:
        """The engines' type for it."""
        ((relation, value),) = self._relations()
        return Condition(self.path, self.field, relation, value)


class CallSettings(Section):
    """A call of an engine's control interface."""

    call: CallText = Field(description="Method and path, as 'POST /free'. {model} and {name} are replaced.")
    body: dict[str, Any] | None = Field(
        default=None, description="A JSON body. {model} and {name} are replaced in its texts."
    )
    until: ConditionSettings | None = Field(
        default=None,
        description="What must be so then. If it is not in time, the step fails and the engine is stopped.",
    )
    timeout_seconds: PositiveSeconds | None = Field(
        default=None,
        description="For the call and what it leads to. Default: sleep_timeout_seconds, or wake_timeout_seconds.",
    )

    @property
    def described(self) -> Call:
        """The engines' type for it."""
        method, _, path = self.call.partition(" ")
        until = None if self.until is None else self.until.condition
        return Call(method, path, self.body, until, self.timeout_seconds)


class SleepSettings(Section):
    """The calls by which an engine gives up its GPU memory, and those that undo it."""

    leave: tuple[CallSettings, ...] = Field(min_length=1, description="The calls by which it leaves the GPU, in order.")
    come_back: tuple[CallSettings, ...] = Field(
        default=(), description="The calls by which it comes back, in order; none if its first request does that."
    )

    @property
    def described(self) -> SleepCalls:
        """The engines' type for it."""
        return SleepCalls(*(tuple(call.described for call in calls) for calls in (self.leave, self.come_back)))


class SleepWays(Section):
    """How an engine gives up its GPU memory and keeps running, by what becomes of the weights."""

    offload: SleepSettings | None = Field(
        default=None, description="offload+keep_running: weights stay in host memory."
    )
    discard: SleepSettings | None = Field(default=None, description="discard+keep_running: weights are read again.")

    @property
    def described(self) -> dict[Weights, SleepCalls]:
        """The engines' type for it."""
        ways = {Weights.OFFLOAD: self.offload, Weights.DISCARD: self.discard}
        return {weights: calls.described for weights, calls in ways.items() if calls is not None}


class BusySettings(Section):
    """Where an engine tells of work that goes on when its requests have been answered."""

    path: UrlPath = Field(description="The path that is read, once a second while there may be work.")
    fields: tuple[FieldPath, ...] = Field(min_length=1, description="It works while any of these fields is not empty.")


class PathSettings(Section):
    """A path of an engine that clients may use."""

    path: UrlPath = Field(description="The path, as requests have it.")
    methods: tuple[Text, ...] = Field(default=("POST",), description="The methods that it takes.")
    body: BodyType = Field(default=BodyType.JSON, description="What a POST carries: json, form or any.")
    model_in_body: Flag = Field(
        default=True,
        description="Whether the body names the model; if not, header, path (/upstream/NAME/…) or query do.",
    )
    may_wake: Flag = Field(default=True, description="Whether a POST wakes the model.")

    @property
    def endpoint(self) -> Endpoint:
        """The engines' type for it."""
        return Endpoint(self.path, self.methods, _MEDIA_TYPES[self.body], self.model_in_body, self.may_wake)


class CauseSettings(Section):
    """What a line of output tells of an engine's end."""

    pattern: Pattern = Field(description="A regular expression that is searched in each of the last lines.")
    cause: Text = Field(description="What clients are told; they never see the line itself.")


class EngineDescription(Section):
    """A kind of engines, described by data: what an ``engine: command`` is not told."""

    start_command: CommandLine = Field(
        description="The whole command line that starts it; extra_args follow. {port}, {model} and {name} are replaced."
    )
    stop_command: CommandLine | None = Field(
        default=None, description="Ends what does not end with its process, as for engine: command."
    )
    program: Text | None = Field(
        default=None,
        description="The word of start_command that is the program: it must be on this machine, and a model's command "
        "takes its place. Default: the first.",
    )
    ready_path: UrlPath = Field(
        default=HEALTH_PATH, description="Answers 200 once it is ready, and as long as it lives."
    )
    needs_model_path: Flag = Field(default=False, description="Whether its models must have a model_path.")
    sleep: SleepWays = Field(default=SleepWays(), description="How it leaves the GPU and keeps running.")
    busy: BusySettings | None = Field(
        default=None, description="Where it tells of work that goes on when its requests have been answered."
    )
    inference_paths: tuple[PathSettings, ...] = Field(
        default=(),
        description="Its inference paths. Default: those of OpenAI's API, and what most engines have beside them.",
    )
    pages: Flag = Field(
        default=False,
        description="Whether it has pages for people: any other path under /upstream/NAME is forwarded for a GET while "
        "the model is on the GPU, and wakes nothing.",
    )
    never_forwarded: tuple[Text, ...] = Field(
        default=(), description="Names at the beginning of paths that clients must not reach: they control the engine."
    )
    removed_headers: tuple[Text, ...] = Field(default=(), description="Header fields that it does not get of clients.")
    removed_fields: tuple[Text, ...] = Field(default=(), description="Fields of JSON bodies that it does not get.")
    out_of_memory: Pattern = Field(
        default=Engine.out_of_memory.pattern,
        description="A regular expression, whatever the case, found in a line of output that says that GPU memory was "
        "too little.",
    )
    causes: tuple[CauseSettings, ...] = Field(default=(), description="What lines of output tell of its end.")
    max_in_flight: Count = Field(
        default=DEFAULT_MAX_IN_FLIGHT, description="How many requests it works on at once, if the model does not say."
    )
    canary: Flag = Field(
        default=True, description="Whether it is asked the canary's question; false if it knows no text."
    )

    @model_validator(mode="after")
    def _program_is_there(self) -> Self:
        if self.program is not None and self.program not in self.start_command:
            raise PydanticCustomError("program", "program must be one of the words of start_command")
        return self

    def description(self, name: str) -> Description:
        """The engines' type for it."""
        endpoints = {one.path: one.endpoint for one in self.inference_paths}
        return Description(
            name=name,
            start_command=self.start_command,
            stop_command=self.stop_command or (),
            program=self.program or "",
            ready_path=self.ready_path,
            sleep=self.sleep.described,
            busy=None if self.busy is None else Busy(self.busy.path, self.busy.fields),
            rules=RequestRules(
                endpoints=endpoints or COMMON_ENDPOINTS,
                never_forwarded=frozenset(name.strip("/") for name in self.never_forwarded),
                forwards_pages=self.pages,
                removed_headers=frozenset(name.lower() for name in self.removed_headers),
                removed_fields=frozenset(self.removed_fields),
            ),
            out_of_memory=re.compile(self.out_of_memory, re.IGNORECASE),
            causes=tuple((re.compile(one.pattern), one.cause) for one in self.causes),
            max_in_flight=self.max_in_flight,
            needs_model_path=self.needs_model_path,
            canary=self.canary,
        )


@cache
def built_in(kind: str) -> Description:
    """One of the descriptions that llmux comes with. Reads the disk."""
    file = description_file(kind)
    return EngineDescription.model_validate(parse(file.read_text(), str(file)).data).description(kind)
