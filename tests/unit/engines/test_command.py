"""A server that is known by its commands alone: what becomes of the templates, and what is refused."""

from typing import Any

import pytest

from llmux.config.load import loads
from llmux.config.settings import Settings
from llmux.core.eviction import STOP, Eviction
from llmux.engines.base import EngineOptions
from llmux.engines.command import Command, container_name
from llmux.errors import ConfigError

CHECKPOINT = Eviction.parse("retain+checkpoint")
START = ("serve", "--port", "{port}")


def command(*start_command: str, **options: Any) -> Command:
    given = {"name": "m", "model_path": "w.gguf", "program": start_command[0] if start_command else ""} | options
    return Command(EngineOptions(start_command=start_command, **given))


def test_exactly_three_placeholders_are_replaced_wherever_they_are() -> None:
    engine = command("serve", "--at={port}", "{model}", "{name}", '{"a": {port}}', "{other}", "{", "{{port}}", "{}")
    assert engine.command_line(80) == ("serve", "--at=80", "w.gguf", "m", '{"a": 80}', "{other}", "{", "{80}", "{}")


def test_what_a_placeholder_stands_for_is_not_searched_for_others() -> None:
    assert command("serve", "{model}:{port}", model_path="{port}").command_line(80)[1] == "{port}:80"


def test_further_arguments_come_last() -> None:
    assert command(*START, extra_args=("--fast",)).command_line(80) == ("serve", "--port", "80", "--fast")


def test_a_model_whose_name_a_container_cannot_have() -> None:
    plain = command(*START, "{name}", name="org/m:8b")
    assert plain.served_names == ("org/m:8b",)
    contained = command("docker", "run", "--name", "{name}", name="org/m:8b", stop_command=("docker", "stop", "{name}"))
    name = contained.command_line(80)[3]
    assert name.startswith("org-m-8b-")
    assert contained.stop_command(80) == ("docker", "stop", name)
    assert contained.served_names == (name,)
    assert command("docker", "run", name="org/m", stop_command=("docker",)).served_names == ("org/m",)


@pytest.mark.parametrize("name", ["qwen", "Qwen2.5-7B_x", "a/b", "a-b", "a:b", "-a", ".", "ä", "x"])
def test_names_of_containers_are_distinct_and_allowed(name: str) -> None:
    made = container_name(name)
    assert len(made) > 1 and made[0].isalnum() and made.isascii()
    assert not set(made) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    assert (made == name) == (name in ("qwen", "Qwen2.5-7B_x", "a-b"))
    assert len({container_name(one) for one in ("a/b", "a-b", "a:b")}) == 3


def test_it_leaves_suspended_by_an_image_or_by_stop_and_in_no_other_way() -> None:
    ways = {str(eviction) for eviction in command(*START).evictions()}
    assert ways == {"retain+stop", "offload+stop", "discard+stop", "retain+cuda_suspend", "retain+checkpoint"}
    contained = command(*START, stop_command=("docker", "stop", "{name}"))
    assert CHECKPOINT not in contained.evictions()
    assert contained.nearest(CHECKPOINT) == STOP


def problems(**model: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as failure:
        loads(str({"models": {"m": {"engine": "command"} | model}}).replace("None", "null"))
    return {problem.path: f"{problem.message}; {problem.remedy}" for problem in failure.value.problems}


def test_check_says_what_a_command_lacks() -> None:
    assert "write the whole command line" in problems()["models.m.start_command"]
    assert "write {port} where its port belongs" in problems(start_command="serve")["models.m.start_command"]
    wrong = problems(start_command="serve {port}", command="other", ready_path="ready", wake_command="x", eviction=None)
    assert wrong["models.m.command"] == "start_command names the program; remove it"
    assert wrong["models.m.ready_path"].endswith("write /ready")
    assert wrong["models.m.wake_command"] == "a command engine has no use for it; remove it"


def test_a_command_with_a_port_of_its_own_or_in_a_further_argument() -> None:
    one = {"engine": "command", "start_command": "serve", "port": 8188}
    other = {"engine": "command", "start_command": "serve", "extra_args": ["--port", "{port}"]}
    settings = loads(str({"models": {"one": one}})).settings
    assert settings.engine_of("one").command_line(8188) == ("serve",)
    assert "start_command" in "".join(problems(**other)), "extra_args are passed on as they are"


def settings_of(**model: Any) -> Settings:
    return Settings.model_validate({"models": {"m": {"engine": "command", **model}}})


def test_the_program_is_the_first_word() -> None:
    settings = settings_of(start_command="{model} --server --port {port}", model_path="/opt/m.llamafile")
    assert settings.command_of("m") == "/opt/m.llamafile"
    assert settings.command_path_of("m") == "models.m.start_command"
    assert list(settings.engine_of("m").problems(STOP)) == []


def test_keys_in_the_command_are_secret() -> None:
    settings = settings_of(start_command="serve {port} --api-key swordfish", api_key="opensesame")
    assert {"swordfish", "opensesame"} <= set(settings.secrets())
    assert settings.engine_of("m").api_key == "opensesame"


def test_the_path_of_its_health() -> None:
    assert settings_of(start_command="serve").engine_of("m").health_path == "/health"
    assert settings_of(start_command="serve", ready_path="/v1/models").engine_of("m").health_path == "/v1/models"
