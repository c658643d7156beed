"""Variables and ``~`` are replaced in every value or refused, and never taken literally in silence."""

import json
import os
import pwd
from typing import Any

import pytest

from llmux.config.load import Loaded, loads
from llmux.config.position import Position, position_of
from llmux.config.settings import Settings
from llmux.core.eviction import Drain, Eviction
from llmux.errors import ConfigError, Problem

ENVIRONMENT = {
    "HOME": "/home/me",
    "EMPTY": "",
    "NAME": "value",
    "PORT": "8001",
    "SHARE": "0.5",
    "YES": "true",
    "A_KEY": "hush-hush",
    "B_KEY": "other-key",
    "UNNAMED": "hush-too",
}
ME = pwd.getpwuid(os.getuid())


def loaded(model: dict[str, Any] | None = None, /, **top: Any) -> Loaded:
    data = {"models": {"a": {"model_path": "x"} | (model or {})}} | top
    return loads(json.dumps(data), "llmux.yaml", ENVIRONMENT)


def problems(model: dict[str, Any] | None = None, /, **top: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        loaded(model, **top)
    return list(caught.value.problems)


def paths(model: dict[str, Any] | None = None, /, **top: Any) -> list[str]:
    return [problem.path for problem in problems(model, **top)]


def model_path(text: str) -> str:
    return loaded({"model_path": text}).settings.models["a"].model_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${NAME}", "value"),
        ("a${NAME}b${NAME}", "avaluebvalue"),
        ("${ABSENT:-x}", "x"),
        ("${EMPTY:-x}", "x"),
        ("a${ABSENT:-}b", "ab"),
        ("a${EMPTY}", "a"),
        ("${NAME:-${ABSENT}}", "value"),
        ("${ABSENT:-${NAME}/${ALSO:-y}}/z", "value/y/z"),
        ("${ABSENT:-a:-b$c}", "a:-b$c"),
        ("$${NAME}", "${NAME}"),
        ("$$HOME", "$HOME"),
        ("$$$$", "$$"),
        ("$$${NAME}", "$value"),
        ("x$", "x$"),
        ("x$ y", "x$ y"),
        ("a}b", "a}b"),
        ("~", "/home/me"),
        ("~/m", "/home/me/m"),
        ("${ABSENT:-~/m}", "/home/me/m"),
        (f"~{ME.pw_name}/m", f"{ME.pw_dir}/m"),
        ("a/~/b", "a/~/b"),
    ],
)
def test_what_a_text_means(text: str, expected: str) -> None:
    assert model_path(text) == expected


@pytest.mark.parametrize(
    "text", ["${}", "${1}", "${NAME", "${NAME-x}", "${NAME:?x}", "${ NAME }", "${ABSENT:-${}}", "${"]
)
def test_a_malformed_reference_is_refused(text: str) -> None:
    (problem,) = problems({"model_path": text})
    assert (problem.path, problem.message) == ("models.a.model_path", "${ begins no variable")


def test_defaults_may_not_be_nested_without_end() -> None:
    (problem,) = problems({"model_path": "${ABSENT:-" * 100_000})
    assert problem.message == "${…} is nested too deeply"


def test_an_unset_variable_names_the_key_and_the_variable() -> None:
    (problem,) = problems({"extra_args": ["--max-num-seqs", "${ABSENT}"]})
    assert str(problem) == (
        "models.a.extra_args.1: the environment variable ABSENT is not set (set ABSENT, or write ${ABSENT:-DEFAULT})"
    )


def test_every_kind_of_value_may_come_from_the_environment() -> None:
    settings = loaded(
        {
            "model_path": "${HOME}/m",
            "port": "${PORT}",
            "extra_args": ["--seed", "${PORT}", "--x=${NAME}"],
            "env": {"A": "${NAME}", "B": "~/b:~/c", "EMPTY": "${EMPTY}"},
            "command": "~/bin/vllm",
            "max_in_flight": " ${ABSENT:-4} ",
            "drain": "${ABSENT:-abort}",
            "weight": "${SHARE}",
            "eviction": {"weights": "${ABSENT:-offload}", "process": "keep_running"},
        },
        host="${ABSENT:-::1}",
        metrics_port="1${PORT}",
        warmup="${YES}",
        access_log="~/log",
        vllm_command="${HOME}/vllm",
        log_level="${ABSENT:-debug}",
        policy={"policy_type": "${ABSENT:-fifo}", "tick_interval_ms": "${PORT}", "sleep_level": "${ABSENT:-1}"},
        checkpoint={
            "criu_path": "~/criu",
            "cuda_plugin_dir": "~/plugin",
            "images_dir": "${HOME}/images",
            "object_store": {"endpoint": "http://${NAME}", "bucket": "b", "access_key": "${A_KEY}", "secret_key": "s"},
        },
    ).settings
    model, checkpoint, policy = settings.models["a"], settings.checkpoint, settings.policy
    assert (model.model_path, model.port, model.command) == ("/home/me/m", 8001, "/home/me/bin/vllm")
    assert model.extra_args == ("--seed", "8001", "--x=value")
    assert model.env == {"A": "value", "B": "/home/me/b:/home/me/c", "EMPTY": ""}
    assert (model.max_in_flight, model.drain, model.weight) == (4, Drain.ABORT, 0.5)
    assert settings.eviction_of("a") == Eviction.parse("offload+keep_running")
    assert (settings.host, settings.metrics_port, settings.warmup) == ("::1", 18001, True)
    assert (str(settings.access_log), settings.vllm_command) == ("/home/me/log", "/home/me/vllm")
    assert (settings.log_level, policy.policy_type, policy.tick_interval_seconds) == ("debug", "fifo", 8.001)
    assert str(policy.eviction.eviction) == "offload+keep_running"
    assert checkpoint is not None
    assert checkpoint.object_store is not None
    assert (checkpoint.criu_path, str(checkpoint.cuda_plugin_dir)) == ("/home/me/criu", "/home/me/plugin")
    assert (str(checkpoint.images_dir), checkpoint.object_store.endpoint) == ("/home/me/images", "http://value")


def test_no_setting_takes_a_variable_literally() -> None:
    """Every text, number, flag and choice of every section, found by the settings' own types."""

    def places(position: Position, path: tuple[str, ...]) -> Any:
        children = position.keys or (("K",) if position.has_free_keys else ())
        for key in children:
            yield from places(position.below(key), (*path, key))
        if not children:
            yield path

    found = list(places(position_of(Settings), ()))
    assert len(found) > 50
    for path in found:
        value: Any = ["${ABSENT}"] if path[-1] in ("extra_args", "api_keys", "batch_api_keys") else "${ABSENT}"
        data: Any = {"models": {"a": {"model_path": "x"}}}
        level = data
        for key in path[:-1]:
            level = level.setdefault(key, {})
        level[path[-1]] = value
        with pytest.raises(ConfigError) as caught:
            loads(json.dumps(data), environment={})
        assert "the environment variable ABSENT is not set" in str(caught.value), path


@pytest.mark.parametrize("value", ["text", "", "8001x", "1e", "yes", "1" * 30, "1" * 5000])
def test_a_variable_that_is_no_number_is_refused_without_its_value(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads('{"models": {"a": {"model_path": "x"}}, "port": "${P}", "warmup": "${P}"}', environment={"P": value})
    assert [str(problem) for problem in caught.value.problems] == [
        "port: must be a whole number (it comes from ${P})",
        "warmup: must be true or false (it comes from ${P})",
    ]


def test_a_number_in_quotes_is_still_no_number() -> None:
    assert paths(port="3000") == ["port"]


def test_a_variable_does_not_hide_the_inherited_one() -> None:
    (problem,) = problems({"env": {"HF_TOKEN": "${HF_TOKEN}"}})
    assert problem.path == "models.a.env.HF_TOKEN"
    assert problem.remedy == "set HF_TOKEN, or remove the key: engines inherit llmux's environment"


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ({"env": {"HF_TOKEN": "$HF_TOKEN"}}, "models.a.env.HF_TOKEN"),
        ({"model_path": "$HOME/m"}, "models.a.model_path"),
        ({"extra_args": ["--chat-template", "$HOME/t"]}, "models.a.extra_args.1"),
        ({"env": {"A": "~nobody-of-this-name/x"}}, "models.a.env.A"),
        ({"model_path": "~nobody-of-this-name/x"}, "models.a.model_path"),
        ({"env": {"${NAME}": "x"}}, "models.a.env.${NAME}"),
    ],
)
def test_what_looks_like_a_variable_or_home_is_refused(model: dict[str, Any], path: str) -> None:
    (problem,) = problems(model)
    assert problem.path == path
    assert problem.remedy


def test_a_bad_item_does_not_hide_the_others() -> None:
    assert sorted(paths({"extra_args": ["${ABSENT}", "--seed 1"]}, api_keys=["${ABSENT}", " "])) == [
        "api_keys.0",
        "api_keys.1",
        "models.a.extra_args.0",
        "models.a.extra_args.1",
    ]


def test_a_models_name_is_not_replaced() -> None:
    with pytest.raises(ConfigError, match=r"models\.\$\{NAME\}: \$\{NAME\} is replaced in values and not in keys"):
        loads('{"models": {"${NAME}": {"model_path": "x"}}}', environment=ENVIRONMENT)


@pytest.mark.parametrize(
    ("value", "warning"),
    [
        ("/lib:$HOME", "$HOME is not replaced"),
        ("/lib:$LD_LIBRARY_PATH", "$NAME is not replaced"),
        ("pa$$word", "$$ is read as one $"),
        ("pa$word", None),
        ("^x$", None),
        ("a$$HOME", None),
        ("a$$$$b", None),
    ],
)
def test_what_may_be_meant_otherwise_is_a_warning(value: str, warning: str | None) -> None:
    warnings = loaded({"env": {"A": value}}).warnings
    assert [(found.path, found.message) for found in warnings] == ([("models.a.env.A", warning)] if warning else [])


def test_every_secret_is_replaced() -> None:
    settings = loaded(
        admin_key="${A_KEY}", api_keys=["${A_KEY}", "plain", "${ABSENT:-d}"], batch_api_keys=["$$x"]
    ).settings
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == "hush-hush"
    assert [key.get_secret_value() for key in settings.api_keys] == ["hush-hush", "plain", "d"]
    assert [key.get_secret_value() for key in settings.batch_api_keys] == ["$x"]


@pytest.mark.parametrize(("name", "what"), [("ABSENT", "not set"), ("EMPTY", "empty")])
def test_a_key_from_an_unset_or_empty_variable_is_a_problem(name: str, what: str) -> None:
    (problem,) = problems(api_keys=["x", f"${{{name}}}"])
    assert problem.path == "api_keys.1"
    assert problem.message == f"the environment variable {name} is {what}"


@pytest.mark.parametrize(
    "value",
    ["${A_KEY} ", "sk-${A_KEY}", "${A_KEY}${B_KEY}", "${}", "${A_KEY", "$A_KEY", "$lower", "x$A_KEY", "x$SECRETWORD"],
)
@pytest.mark.parametrize("key", ["admin_key", "api_keys", "batch_api_keys"])
def test_a_key_is_a_reference_or_none(key: str, value: str) -> None:
    (problem,) = problems(**{key: value if key == "admin_key" else [value]})
    assert problem.path.startswith(key)
    assert problem.remedy
    assert "SECRETWORD" not in str(problem)


def test_no_message_contains_a_secret() -> None:
    data = {
        "models": {
            "a": {"model_path": "--${A_KEY}", "extra_args": ["--max-num-seqs", "${A_KEY}"], "drain": "${UNNAMED}"}
        },
        "policy": {"policy_type": "${A_KEY}", "eviction": "${UNNAMED}"},
        "vllm_command": "${A_KEY} x",
        "port": "${B_KEY}",
    }
    with pytest.raises(ConfigError) as caught:
        loads(json.dumps(data), environment=ENVIRONMENT)
    text = str(caught.value)
    assert len(caught.value.problems) >= 4
    assert not any(secret in text for secret in ("hush-hush", "other-key", "hush-too"))


def test_an_object_that_contains_itself_ends() -> None:
    with pytest.raises(ConfigError):
        loads("models: &m {a: *m}\n")


def test_shared_objects_are_expanded_once() -> None:
    """Thirty levels of aliases are a billion places."""
    lines = ["x0: &x0 ['${NAME}']", *(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]" for n in range(1, 30))]
    with pytest.raises(ConfigError) as caught:
        loads("\n".join(lines) + "\nmodels: {a: *x29}\n", environment=ENVIRONMENT)
    assert len(caught.value.problems) == 31


def test_a_reference_without_quotes_in_a_flow_mapping_has_its_remedy() -> None:
    with pytest.raises(ConfigError, match=r"put \$\{NAME\} into quotes"):
        loads("models: {a: {model_path: ${NAME}}}\n")
