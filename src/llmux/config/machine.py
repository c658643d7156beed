"""Whether this machine has what the configuration names: programs, directories, files and addresses.

What cannot work is a problem. What may be there later (a program not installed yet, a directory that is mounted) is a
warning: ``llmux check`` and every command that starts engines print it.
"""

import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import Path

from llmux.config.problems import dotted
from llmux.config.settings import Settings
from llmux.engines.files import exists, is_directory
from llmux.errors import Problem
from llmux.redaction import Redactor, secrets_in


def problems(settings: Settings) -> Iterator[Problem]:
    """Files where a directory belongs, and directories where a file does."""
    if settings.access_log is not None and is_directory(settings.access_log):
        yield Problem("access_log", f"{settings.access_log} is a directory", "name a file in it")
    for path, directory in _directories(settings):
        if exists(directory) and not is_directory(directory):
            yield Problem(path, f"{directory} is not a directory", "correct it")
    yield from _missing_images(settings)


def warnings(settings: Settings, environment: Mapping[str, str] = os.environ) -> Iterator[Problem]:
    """What is not there now. Looks up ``host`` if it is a name, which can take seconds where DNS is broken."""
    found = chain(
        _missing_programs(settings, environment),
        _missing_weights(settings),
        _unusable_images(settings),
        _unwritable_log(settings),
        _unknown_address(settings),
    )
    # A path may contain the value of a variable.
    redact = Redactor(secrets_in(environment)).redact
    for problem in found:
        yield Problem(problem.path, redact(problem.message), problem.remedy)


def _missing_programs(settings: Settings, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Each program once, with the models that need it: it is searched on their own PATH."""
    missing: dict[tuple[str, str, str], list[str]] = {}
    reason_of = cache(_missing_reason)
    for name, model in settings.models.items():
        if not settings.engine_of(name).runs_as_process:
            continue
        program = settings.command_of(name)
        reason = reason_of(program, model.env.get("PATH", environment.get("PATH")))
        if reason:
            path = settings.command_path_of(name)
            missing.setdefault((path, program, reason), []).append(name)
    is_configured = settings.vllm_command != Settings.model_fields["vllm_command"].default
    is_unused = is_configured and all(settings.command_path_of(name) != "vllm_command" for name in settings.models)
    if is_unused and (reason := _missing_reason(settings.vllm_command, environment.get("PATH"))):
        missing["vllm_command", settings.vllm_command, reason] = []
    for (path, program, reason), names in missing.items():
        if len(program.split()) > 1:
            message = f"is taken as the one program {program!r}, which {reason}"
            yield Problem(path, message, "put further words into extra_args, or write a small script")
        else:
            effect = f"; {', '.join(names)} cannot start" if names else ""
            yield Problem(path, f"the program {program!r} {reason}{effect}", _INSTALL)
    if settings.needs_criu and settings.checkpoint is not None:
        program = settings.checkpoint.criu_path
        if reason := _missing_reason(program, environment.get("PATH")):
            yield Problem("checkpoint.criu_path", f"the program {program!r} {reason}", _INSTALL)


_HUGGING_FACE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
_INSTALL = "install it, or name another one"


def _missing_reason(program: str, search_path: str | None) -> str:
    """Why a program cannot be executed here; empty if it can."""
    if shutil.which(program, path=search_path) is not None:
        return ""
    if "/" not in program:
        return "is not on PATH"
    if is_directory(program):
        return "is a directory"
    return "is not executable" if exists(program) else "does not exist"


def _missing_weights(settings: Settings) -> Iterator[Problem]:
    for name, model in settings.models.items():
        path = dotted(("models", name, "model_path"))
        if not model.model_path:
            continue
        if found := _HUGGING_FACE.match(model.model_path):
            yield Problem(path, "is the address of a web page, not an id", f"write {found[1]}")
            continue
        if "://" in model.model_path:  # An object store, which some engines read themselves.
            continue
        # A Hugging Face id is NAME or OWNER/NAME.
        is_path = model.model_path.startswith(("/", "./", "../")) or model.model_path.count("/") > 1
        if is_path and not exists(model.model_path):
            yield Problem(path, f"{model.model_path} does not exist", "correct it, or put the weights there")


def _missing_images(settings: Settings) -> Iterator[Problem]:
    for name, model in settings.models.items():
        image = model.canary_image
        if image is not None and not (exists(image) and not is_directory(image)):
            yield Problem(dotted(("models", name, "canary_image")), f"{image} is not a file", "correct it")


def _directories(settings: Settings) -> Iterator[tuple[str, Path]]:
    for name, model in settings.models.items():
        if model.checkpoint_path is not None:
            yield dotted(("models", name, "checkpoint_path")), model.checkpoint_path
    if settings.checkpoint is not None:
        yield "checkpoint.images_dir", settings.checkpoint.images_dir
        if "cuda_plugin_dir" in settings.checkpoint.model_fields_set:
            yield "checkpoint.cuda_plugin_dir", settings.checkpoint.cuda_plugin_dir


def _unusable_images(settings: Settings) -> Iterator[Problem]:
    if settings.checkpoint is None or not settings.needs_criu:
        return
    directory = settings.checkpoint.images_dir
    if (is_directory(directory) or not exists(directory)) and (reason := _unwritable_reason(directory)):
        yield Problem("checkpoint.images_dir", f"images cannot be written to {directory}: {reason}", _WRITABLE)
    plugins = settings.checkpoint.cuda_plugin_dir
    if "cuda_plugin_dir" in settings.checkpoint.model_fields_set and not exists(plugins):
        yield Problem("checkpoint.cuda_plugin_dir", f"{plugins} does not exist", "install criu's CUDA plugin there")


_WRITABLE = "choose a directory that llmux may write to, or change its owner"


def _unwritable_reason(directory: Path) -> str:
    """Why nothing can be written into a directory that is created if need be; empty if something can."""
    existing = next((one for one in (directory, *directory.absolute().parents) if exists(one)), Path("/"))
    if not is_directory(existing):
        return f"{existing} is not a directory"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} is not writable"


def _unwritable_log(settings: Settings) -> Iterator[Problem]:
    file = settings.access_log
    if file is None or is_directory(file):
        return
    directory = file.parent
    if not exists(directory):
        yield Problem("access_log", f"the directory {directory} does not exist", "create it")
    elif not is_directory(directory):
        yield Problem("access_log", f"{directory} is not a directory", "correct it")
    elif not os.access(file if exists(file) else directory, os.W_OK):
        yield Problem("access_log", f"{file} cannot be written", _WRITABLE)


def _unknown_address(settings: Settings) -> Iterator[Problem]:
    """Whether the host's name is known and its address one of this machine: tried with a free port."""
    host = None if settings.host == "*" else settings.host
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        message = f"the name {settings.host!r} cannot be looked up: {getattr(error, 'strerror', None) or error}"
        yield Problem("host", message, "write an address of this machine, such as 127.0.0.1")
        return
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
        except OSError as error:
            message = f"this machine cannot listen on {address[0]}: {error.strerror}"
            yield Problem("host", message, "write an address of this machine, such as 127.0.0.1")
