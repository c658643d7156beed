"""Docker's command lines and templates, as far as the stand-in knows them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_RUN_HELP = "Run 'docker run --help' for more information"


class DockerError(Exception):
    """What the client prints, and its exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        self.exit_code = exit_code
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: its name, whether it takes a value, and what it is without one."""

    name: str
    takes_value: bool = True
    short: str = ""
    value_if_bare: str = "true"


def _switch(name: str, short: str = "") -> Flag:
    return Flag(name, takes_value=False, short=short)


COMMANDS: Mapping[str, tuple[Flag, ...]] = {
    "run": (
        _switch("rm"),
        _switch("detach", "d"),
        _switch("interactive", "i"),
        _switch("tty", "t"),
        _switch("init"),
        _switch("sig-proxy"),
        _switch("privileged"),
        *(Flag(name) for name in ("name", "network", "net", "entrypoint", "gpus", "ipc", "shm-size", "runtime")),
        *(Flag(name) for name in ("stop-signal", "stop-timeout", "restart", "pull", "memory", "cpus", "ulimit")),
        *(Flag(name) for name in ("device", "mount", "security-opt", "log-driver", "cidfile")),
        Flag("publish", short="p"),
        Flag("env", short="e"),
        Flag("volume", short="v"),
        Flag("label", short="l"),
        Flag("workdir", short="w"),
        Flag("user", short="u"),
    ),
    "stop": (Flag("time", short="t"), Flag("timeout"), Flag("signal", short="s")),
    "kill": (Flag("signal", short="s"),),
    "rm": (_switch("force", "f"), _switch("volumes", "v")),
    "inspect": (Flag("format", short="f"), Flag("type")),
    "ps": (
        _switch("all", "a"),
        _switch("quiet", "q"),
        _switch("no-trunc"),
        Flag("filter", short="f"),
        Flag("format"),
    ),
    "wait": (),
    "version": (Flag("format", short="f"),),
}


@dataclass(slots=True)
class Command:
    """One parsed command line."""

    name: str
    values: dict[str, list[str]] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)

    def one(self, flag: str, default: str = "") -> str:
        """The last value of a flag."""
        return self.values.get(flag, [default])[-1]

    def all(self, flag: str) -> list[str]:
        """All values of a flag."""
        return self.values.get(flag, [])

    def is_set(self, flag: str, default: bool = False) -> bool:
        """Whether a switch is on."""
        return self.one(flag, str(default).lower()) == "true"


def parse(words: list[str]) -> Command:
    """Flags come before arguments; for ``run``, what follows the image is the container's own. Raises DockerError."""
    if words[:1] == ["container"]:
        words = words[1:]
    if not words or words[0] not in COMMANDS:
        name = words[0] if words else ""
        raise DockerError(f"docker: unknown command: docker {name}\n\nRun 'docker --help' for more information")
    command = Command(words[0])
    rest = words[1:]
    while rest:
        word = rest.pop(0)
        if word == "--":
            command.arguments += rest
            break
        if word.startswith("-") and word != "-":
            _take_flag(command, word, rest)
        elif command.name == "run":
            command.arguments = [word, *rest]
            break
        else:
            command.arguments.append(word)
    if not command.arguments and command.name not in ("ps", "version"):
        raise DockerError(f"docker: 'docker {command.name}' requires at least 1 argument", _code(command))
    return command


def _take_flag(command: Command, word: str, rest: list[str]) -> None:
    if not word.startswith("--") and len(word) > 2:
        _take_short_flags(command, word, rest)
        return
    written, equals, value = word.partition("=")
    flag = next((one for one in COMMANDS[command.name] if written in (f"--{one.name}", f"-{one.short}")), None)
    if flag is None:
        raise DockerError(f"unknown flag: {written}\n\n{_RUN_HELP}", _code(command))
    if not equals and flag.takes_value:
        if not rest:
            raise DockerError(f"flag needs an argument: {written}", _code(command))
        value = rest.pop(0)
    command.values.setdefault(flag.name, []).append(value if equals or flag.takes_value else "true")


def _take_short_flags(command: Command, word: str, rest: list[str]) -> None:
    """``-it`` is two switches, ``-p80:80`` a flag with its value."""
    by_letter = {flag.short: flag for flag in COMMANDS[command.name] if flag.short}
    first = by_letter.get(word[1])
    if first is not None and first.takes_value:
        command.values.setdefault(first.name, []).append(word[2:].removeprefix("="))
        return
    for letter in word[1:]:
        _take_flag(command, f"-{letter}", rest)


def _code(command: Command) -> int:
    return 125 if command.name == "run" else 1


def render(template: str, document: Mapping[str, Any]) -> str:
    """A Go template with fields and ``json``. Raises DockerError for a field that there is not."""

    def replaced(match: re.Match[str]) -> str:
        value: Any = document
        for key in filter(None, match["path"].split(".")):
            if not isinstance(value, Mapping) or key not in value:
                raise DockerError(f'template parsing error: template: :1: map has no entry for key "{key}"')
            value = value[key]
        if match["json"] or isinstance(value, bool):
            return json.dumps(value)
        return str(value)

    return re.sub(r"\{\{\s*(?P<json>json\s+)?(?P<path>\.[\w.]*)\s*\}\}", replaced, template)
