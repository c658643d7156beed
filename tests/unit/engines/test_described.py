"""Kinds of engines that are data: the calls by which they sleep, the work that they tell of, and what check refuses."""

from collections.abc import Mapping
from time import monotonic
from typing import Any

import pytest

from llmux.config.engines import EngineDescription, built_in
from llmux.config.load import loads
from llmux.config.settings import Settings
from llmux.core.eviction import STOP, Eviction, Weights
from llmux.core.states import Asleep
from llmux.engines import described
from llmux.engines.base import Engine
from llmux.engines.described import Call, Condition, Relation, perform_calls
from llmux.engines.registry import described_kinds
from llmux.engines.steps import residency_after
from llmux.errors import ConfigError, ControlCallFailed

OFFLOAD = Eviction.parse("offload+keep_running")
DISCARD = Eviction.parse("discard+keep_running")
FREE = {"call": "POST /free/{model}", "body": {"who": ["{name}"], "deep": {"n": 1}}, "timeout_seconds": 5}
KIND: dict[str, Any] = {
    "start_command": "serve --port {port} {model}",
    "sleep": {"discard": {"leave": [FREE], "come_back": [{"call": "PUT /load"}]}},
    "busy": {"path": "/queue", "fields": ["running", "more.0.pending"]},
    "out_of_memory": "no room",
    "causes": [{"pattern": "^E12 ", "cause": "a licence is missing"}],
    "max_in_flight": 3,
    "canary": False,
}


def engine_of(kind: Mapping[str, Any] = KIND, **model: Any) -> Engine:
    given = {"engine": "own", "model_path": "a b"} | model
    return Settings.model_validate({"engines": {"own": dict(kind)}, "models": {"org/m": given}}).engine_of("org/m")


class Endpoints:
    """Answers GETs of each path by turns, and the last one for ever; an exception is raised."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = {f"/{name}": given for name, given in answers.items()}
        self.calls: list[tuple[str, str, Any]] = []

    async def get(self, path: str, timeout_seconds: float) -> Any:
        assert timeout_seconds > 0
        answers = self.answers[path]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def post(self, path: str, timeout_seconds: float, document: Any = None) -> Any:
        return await self.request("POST", path, timeout_seconds, document)

    async def request(self, method: str, path: str, timeout_seconds: float, document: Any = None) -> Any:
        self.calls.append((method, path, document))


class Controls:
    """A running engine to take steps on."""

    applied: tuple[Any, ...] = ()

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints

    async def perform(self, work: Any, what: str) -> None:
        await work


async def test_it_sleeps_and_comes_back_by_its_calls() -> None:
    engine, endpoints = engine_of(), Endpoints()
    (step,) = engine.steps(DISCARD)
    controls: Any = Controls(endpoints)
    controls.applied = await step.apply(controls)
    assert residency_after(DISCARD, controls.applied) == Asleep(DISCARD)
    assert await step.apply(controls) == (), "an engine that sleeps is not asked again"
    await step.undo(controls)
    body = {"who": ["org/m"], "deep": {"n": 1}}
    assert endpoints.calls == [("POST", "/free/a%20b", body), ("PUT", "/load", None)]
    assert engine.parse_step(str(step)) == step


def test_the_ways_in_which_it_can_leave() -> None:
    engine = engine_of()
    assert DISCARD in engine.evictions() and OFFLOAD not in engine.evictions()
    assert engine.nearest(OFFLOAD) == STOP
    assert (step := engine.steps(DISCARD)[0]).leaves_weights is Weights.DISCARD and not step.keeps_requests


def test_what_a_kind_is_told_it_is() -> None:
    engine = engine_of()
    assert (engine.kind, engine.max_in_flight, engine.canary) == ("own", 3, None)
    assert engine.works_after_answering
    assert engine.reports_out_of_memory(["There was NO ROOM"])
    assert engine.known_cause(["E12 x", "y"]) == "a licence is missing"
    assert engine.command_line(80) == ("serve", "--port", "80", "a b")
    assert not engine_of({"start_command": "serve {port}"}).works_after_answering


def test_a_model_names_another_program() -> None:
    kind = {**KIND, "start_command": "env A=1 serve --port {port}", "program": "serve"}
    assert engine_of(kind, command="/opt/serve").command_line(80) == ("env", "A=1", "/opt/serve", "--port", "80")
    assert list(engine_of(kind, command="/opt/serve").problems(STOP)) == []


def condition(relation: Relation, value: Any, field: str = "devices.0.free") -> Condition:
    return Condition("/memory", field, relation, value)


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        (condition(Relation.AT_LEAST, 10), True),
        (condition(Relation.AT_LEAST, 11), False),
        (condition(Relation.AT_MOST, 10), True),
        (condition(Relation.AT_MOST, 9), False),
        (condition(Relation.EQUALS, 10), True),
        (condition(Relation.EQUALS, "10"), False),
        (condition(Relation.EMPTY, True, "models"), True),
        (condition(Relation.EMPTY, False, "models"), False),
        (condition(Relation.EMPTY, False, "devices"), True),
    ],
)
def test_conditions(wanted: Condition, holds: bool) -> None:
    assert wanted.holds({"devices": [{"free": 10}], "models": []}) is holds


@pytest.mark.parametrize("field", ["other", "devices.1", "devices.x", "devices.0.free.x", "devices"])
def test_a_field_that_is_not_there_or_no_number_is_said(field: str) -> None:
    with pytest.raises(ControlCallFailed, match=f"{field}"):
        condition(Relation.AT_LEAST, 1, field).holds({"devices": [{"free": 10}]})


async def test_the_state_is_read_until_it_is_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described, "POLL_SECONDS", 0.001)
    busy = ControlCallFailed("GET /memory", "no answer")
    endpoints = Endpoints(memory=[{"free": 1}, busy, {"free": 1}, {"free": 9}])
    await perform_calls(endpoints, [Call("POST", "/free", None, condition(Relation.AT_LEAST, 5, "free"), 30.0)])
    assert endpoints.calls == [("POST", "/free", None)]


@pytest.mark.parametrize(("answer", "said"), [({"free": 1}, "{'free': 1}"), ({}, "an answer without free")])
async def test_a_state_that_is_not_reached_in_time_fails_the_step(answer: Any, said: str) -> None:
    began_at = monotonic()
    wanted = condition(Relation.AT_LEAST, 5, "free")
    with pytest.raises(ControlCallFailed, match="free of /memory at least 5") as failure:
        await perform_calls(Endpoints(memory=[answer]), [Call("POST", "/free", None, wanted, 0.05)])
    assert said in str(failure.value)
    assert monotonic() - began_at < 5.0


@pytest.mark.parametrize(
    ("queue", "works"),
    [
        ({"running": [], "more": [{"pending": 0}]}, False),
        ({"running": ["x"], "more": [{"pending": 0}]}, True),
        ({"running": [], "more": [{"pending": 2}]}, True),
    ],
)
async def test_whether_it_has_work(queue: Any, works: bool) -> None:
    assert await engine_of().has_work(Endpoints(queue=[queue])) is works


async def test_an_answer_without_the_field_is_no_idleness() -> None:
    with pytest.raises(ControlCallFailed, match="without more.0.pending"):
        await engine_of().has_work(Endpoints(queue=[{"running": ["x"]}]))


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"out_of_memory": "("}, "out_of_memory", "is no regular expression"),
    ({"causes": [{"pattern": "[", "cause": "x"}]}, "causes.0.pattern", "is no regular expression"),
    ({"sleep": {"discard": {"leave": [{"call": "free"}]}}}, "sleep.discard.leave.0.call", "a method and a path"),
    ({"sleep": {"discard": {"leave": []}}}, "sleep.discard.leave", "must not be empty"),
    ({"sleep": {"retain": {"leave": []}}}, "sleep.retain", "unknown key"),
    ({"busy": {"path": "queue", "fields": ["a"]}}, "busy.path", "a path of a URL"),
    ({"busy": {"path": "/queue", "fields": ["a..b"]}}, "busy.fields.0", "joined by dots"),
    ({"program": "other"}, "", "one of the words of start_command"),
    ({"inference_paths": [{"path": "/p", "body": "xml"}]}, "inference_paths.0.body", "must be"),
    ({"colour": 1}, "colour", "unknown key"),
    (
        {"sleep": {"discard": {"leave": [{"call": "POST /f", "until": {"path": "/m", "field": "a"}}]}}},
        "sleep.discard.leave.0.until",
        "exactly one of",
    ),
]


@pytest.mark.parametrize(("keys", "path", "said"), WRONG)
def test_check_says_what_is_wrong_with_a_description(keys: dict[str, Any], path: str, said: str) -> None:
    file = {"engines": {"own": {"start_command": "serve {port}", **keys}}, "models": {"m": {"model_path": "w"}}}
    with pytest.raises(ConfigError) as failure:
        loads(repr(file).replace("False", "false"))
    found = {problem.path: problem.message for problem in failure.value.problems}
    assert said in found[f"engines.own.{path}".rstrip(".")], found


def problems(file: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigError) as failure:
        loads(repr(file))
    return {problem.path: f"{problem.message}; {problem.remedy}" for problem in failure.value.problems}


def test_check_of_kinds_and_their_names() -> None:
    engines = {"own": {"start_command": "serve"}, "command": {"start_command": "serve"}}
    found = problems({"engines": engines, "models": {"m": {"engine": "own"}}})
    assert "choose another name" in found["engines.command"]
    assert "no {port}" in found["models.m.start_command"]
    assert "did you mean 'comfyui'?" in problems({"models": {"m": {"engine": "comfyu"}}})["models.m.engine"]
    assert (
        "no use for it"
        in problems({"models": {"m": {"engine": "tei", "start_command": "x", "model_path": "y"}}})[
            "models.m.start_command"
        ]
    )


def test_an_own_description_takes_the_place_of_a_built_in_one() -> None:
    given = {"engines": {"tei": {"start_command": "mine {port}"}}, "models": {"m": {"engine": "tei"}}}
    assert Settings.model_validate(given).engine_of("m").command_line(80) == ("mine", "80")


@pytest.mark.parametrize("kind", described_kinds())
def test_the_descriptions_that_llmux_comes_with(kind: str) -> None:
    settings = Settings.model_validate({"models": {"m": {"engine": kind, "model_path": "/w"}}})
    engine = settings.engine_of("m")
    assert engine.kind == kind
    assert list(engine.problems(settings.eviction_of("m"))) == []
    assert "80" in " ".join(engine.command_line(80))
    assert built_in(kind).rules.endpoints, "clients must be able to ask something"


def test_all_seven_are_there() -> None:
    names = {"comfyui", "infinity", "ollama", "speaches", "tabbyapi", "tei", "whisper_cpp"}
    assert names == set(described_kinds())
    assert built_in("ollama").rules.removed_fields == {"keep_alive"}


def test_a_description_without_more_than_a_command() -> None:
    description = EngineDescription.model_validate({"start_command": "serve {port}"}).description("x")
    assert description.start_command == ("serve", "{port}")
    assert not description.sleep and description.busy is None
