"""From the command line of an engine to the keys of a model: which kind of engine it is, and what llmux sets itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmux.config.migration import llama_server, words
from llmux.config.migration.draft import ModelDraft, Note
from llmux.engines import arguments, llama_flags

_LLAMA_SERVER = re.compile(r"(?:.*[-_])?llama[-_]server(?:[-_.].*)?")
_PYTHON = re.compile(r"python(?:3(?:\.\d+)?)?")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_CONTAINER_PROGRAMS = ("docker", "podman")
_NOT_IN_A_CONTAINER_NAME = re.compile(r"[^a-zA-Z0-9_.-]+")
_EVERY_ADDRESS = re.compile(rf"(?:{words.PORT}|\d+):\d+(?:/tcp)?")

_SET_BY_LLMUX = ("--host", "--port", "--uds", "--served-model-name")
"""Flags of vLLM and SGLang that are not passed on."""

_CONTAINS_PORT = "its other arguments contain the port, which llmux puts into a start_command only"


@dataclass(frozen=True, slots=True)
class Command:
    """How the source starts a model's engine. ``stop`` is empty where the source stops the process itself."""

    words: tuple[str, ...]
    stop: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


def draft_model(name: str, command: Command) -> ModelDraft:
    """The model's keys as far as the command tells them."""
    draft = ModelDraft()
    command = _without_env(command)
    if command.env:
        draft.keys["env"] = dict(command.env)
    if words.program(command.words) in _CONTAINER_PROGRAMS and "run" in command.words[1:4]:
        _container(name, command, draft)
    elif (why := _known_engine(command, draft)) is not None:
        if why:
            draft.note("start_command", Note("cmd", f"run by the engine 'command': {why}"))
        _plain_command(command, draft)
    return draft


def _without_env(command: Command) -> Command:
    """``env NAME=VALUE program`` as the program with these variables. Other forms of env stay as they are."""
    if words.program(command.words) != "env":
        return command
    rest = command.words[1:]
    env = dict(command.env)
    while rest and _ASSIGNMENT.fullmatch(rest[0]):
        name, _, value = rest[0].partition("=")
        env[name] = value
        rest = rest[1:]
    if not rest or rest[0].startswith("-"):
        return command
    return Command(rest, command.stop, env)


def _known_engine(command: Command, draft: ModelDraft) -> str | None:
    """Fill the draft for an engine that llmux knows. Else what is to be said of that, which may be nothing."""
    program, given = command.words[0], command.words[1:]
    name = words.program(command.words)
    if _LLAMA_SERVER.fullmatch(name):
        why = _llama_server(program, given, command.env, draft)
    elif name == "vllm" and given[:1] == ("serve",):
        why = _vllm(program, given[1:], draft)
    elif _PYTHON.fullmatch(name) and given[:2] == ("-m", "vllm.entrypoints.openai.api_server"):
        why = _vllm(f"{program.rpartition('/')[0]}/vllm" if "/" in program else "vllm", given[2:], draft)
        if not why:
            draft.note("command", Note("cmd", "llmux runs 'vllm serve'", " ".join((name, *given[:2]))))
    elif _PYTHON.fullmatch(name) and given[:2] == ("-m", "sglang.launch_server"):
        why = _sglang(program, given[2:], draft)
    else:
        hidden = next((word for word in given if _LLAMA_SERVER.fullmatch(word.rpartition("/")[2])), None)
        return f"{name} stands before {words.shown(hidden)}" if hidden else ""
    if not why and command.stop:
        note = Note("cmdStop", "llmux stops the engine itself, by SIGTERM and then SIGKILL", words.joined(command.stop))
        draft.note("extra_args", note)
    return why or None


def _llama_server(program: str, given: Sequence[str], env: Mapping[str, str], draft: ModelDraft) -> str:
    read = list(llama_flags.read(given))
    named = {one.flag.name: one.value for one in read if one.flag is not None}
    from_env = {
        flag: value
        for flag, name in ((llama_server.HF_REPO, "LLAMA_ARG_HF_REPO"), (llama_server.MODEL, "LLAMA_ARG_MODEL"))
        if (value := env.get(name))
    }
    path = model_path(named) or model_path(from_env)
    if not path:
        return "its arguments name neither a file (-m) nor a repository (-hf), which llmux's engine llama_cpp needs"
    extra: list[str] = []
    for one in read:
        if one.flag is None or one.flag.name not in (llama_server.MODEL, llama_server.HF_REPO):
            pass_on(one, extra, draft)
        elif model_path({one.flag.name: one.value}) != path:
            draft.note("model_path", Note(one.words[0], "only one of -m and -hf can be used", one.value))
    if any(words.PORT in word for word in extra):
        draft.notes.clear()
        return _CONTAINS_PORT
    draft.keys |= {"engine": "llama_cpp", "model_path": path}
    if program != "llama-server":
        draft.keys["command"] = program
    _set_arguments(draft, extra)
    return ""


def model_path(named: dict[str, str]) -> str:
    """The weights that llama-server's flags name, as llmux writes them; empty if they name none."""
    if repository := named.get(llama_server.HF_REPO):
        return f"hf:{repository}"
    return named.get(llama_server.MODEL, "")


def pass_on(given: llama_flags.Given, extra: list[str], draft: ModelDraft) -> None:
    """Add a flag of llama-server's to ``extra_args``, or note why it is left out."""
    why = llama_server.why_dropped(given.flag) if given.flag else ""
    if given.flag and given.flag.name == "sleep-idle-seconds":
        set_idle_seconds(draft, given.value)
    elif why:
        draft.note("extra_args", Note(given.key or given.words[0].partition("=")[0], why, given.value))
    else:
        extra += given.words


def set_idle_seconds(draft: ModelDraft, seconds: str) -> None:
    """Carry over how long a model may be idle. 0 and less mean for ever, as the absence of the key does in llmux."""
    if seconds.startswith("-") or seconds in ("", "0"):
        draft.keys.pop("idle_seconds", None)
    else:
        draft.keys["idle_seconds"] = int(seconds) if seconds.isdigit() else seconds


def _vllm(program: str, given: Sequence[str], draft: ModelDraft) -> str:
    model = arguments.value(given, ("--model",))
    if given and not given[0].startswith("-"):
        model, given = given[0], given[1:]
    if not model:
        return "its arguments do not begin with the model"
    unusual = "" if program == "vllm" else program
    return _python_engine("vllm", unusual, model, arguments.without(given, ("--model",)), draft)


def _sglang(program: str, given: Sequence[str], draft: ModelDraft) -> str:
    flags = ("--model-path", "--model")
    model = arguments.value(given, flags)
    if not model:
        return "its arguments do not name the model (--model-path)"
    unusual = "" if "/" not in program else program
    return _python_engine("sglang", unusual, model, arguments.without(given, flags), draft)


def _python_engine(engine: str, program: str, model: str, given: Sequence[str], draft: ModelDraft) -> str:
    """An engine whose arguments argparse reads; ``program`` is empty if it is the usual one."""
    kept = arguments.without(given, _SET_BY_LLMUX)
    if any(words.PORT in word for word in kept):
        return _CONTAINS_PORT
    for option in arguments.options(given):
        if option.flag in _SET_BY_LLMUX:
            draft.note("extra_args", Note(option.flag, llama_server.SET_BY_LLMUX, " ".join(option.values)))
    draft.keys |= {"engine": engine, "model_path": model}
    if program:
        draft.keys["command"] = program
    _set_arguments(draft, list(kept))
    return ""


def _set_arguments(draft: ModelDraft, extra: list[str]) -> None:
    if not extra:
        return
    draft.keys["extra_args"] = extra
    for word in extra:
        if words.is_variable(word):
            note = Note(words.shown(word), "it becomes one word, whatever the variable contains")
            draft.note("extra_args", note)


def _plain_command(command: Command, draft: ModelDraft) -> None:
    draft.keys |= {"engine": "command", "start_command": words.joined(command.words)}
    for placeholder in words.PLACEHOLDERS:
        if any(placeholder in word for word in command.words):
            draft.note("start_command", Note(placeholder, "llmux replaces this in the command, llama-swap does not"))
    if command.stop:
        draft.keys["stop_command"] = words.joined(command.stop)


def _container(name: str, command: Command, draft: ModelDraft) -> None:
    """``docker run``: the container is no child of its client, so it has to be stopped by its name."""
    program, given = command.words[0], list(command.words[1:])
    container = _container_name(given)
    if not container:
        container = f"llmux-{_NOT_IN_A_CONTAINER_NAME.sub('-', name)}"
        given[given.index("run") + 1 : given.index("run") + 1] = ["--name", container]
        draft.note("start_command", Note("cmd", "--name is added, so that the container can be stopped"))
    for word in given:
        published = word.removeprefix("-p").removeprefix("--publish=")
        if _EVERY_ADDRESS.fullmatch(published):
            text = "other machines can reach the engine there; to keep it to llmux, write 127.0.0.1:"
            draft.note("start_command", Note("-p", f"{text}{published}", published))
    if "-d" in given or "--detach" in given:
        text = "with it the command ends at once, and llmux takes the engine for dead: remove it"
        draft.note("start_command", Note("-d", text))
    _plain_command(Command((program, *given), command.stop or (program, "stop", container)), draft)


def _container_name(given: Sequence[str]) -> str:
    for word, following in zip(given, (*given[1:], ""), strict=True):
        if word == "--name":
            return following
        if word.startswith("--name="):
            return word.removeprefix("--name=")
    return ""
