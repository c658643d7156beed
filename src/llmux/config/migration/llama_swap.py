"""From a configuration of llama-swap (YAML) to a draft of llmux's."""

import re
from collections.abc import Container, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from llmux.config.migration import left_out, macros, words
from llmux.config.migration.draft import FileDraft, ModelDraft, Note
from llmux.config.migration.engines import Command, draft_model, set_idle_seconds
from llmux.config.migration.macros import Macros
from llmux.config.migration.source import YamlSource, plain, read_yaml
from llmux.config.migration.writing import flow_list, flow_text
from llmux.config.position import Path

_ENVIRONMENT = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}", re.ASCII)
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
_START_SECONDS_MIN = 15
"""llama-swap raises a shorter ``healthCheckTimeout`` to this."""
_LOG_LEVELS = {"debug": "debug", "info": "info", "warn": "warning", "error": "error"}
_CONVERTED = (
    *("cmd", "cmdStop", "macros", "env", "aliases", "proxy", "checkEndpoint", "useModelName", "ttl"),
    *("concurrencyLimit", "filters"),
)
_CONVERTED_OF_THE_FILE = (
    *("models", "macros", "peers", "healthCheckTimeout", "unloadTimeout", "logLevel", "apiKeys", "globalTTL"),
    *("groups", "matrix", "routing", "hooks", "includeAliasesInList"),
)
_PLACE = "where llama-swap listens is on its command line; llmux listens on 127.0.0.1, port 3000. To take its place:"
_LIMIT = "llama-swap answers 429 above this; in llmux the other requests wait"


def read(text: str, name: str) -> YamlSource:
    """The file with each ``${env.NAME}`` marked: llama-swap replaces them before it reads YAML. Raises ConfigError."""
    return read_yaml(_ENVIRONMENT.sub(lambda match: words.variable(match[1]), text), name)


def convert(source: YamlSource) -> FileDraft:
    """The draft of a file. Raises ConfigError, with the line, for what llama-swap would refuse, too."""
    return _File(source).convert()


class _File:
    def __init__(self, source: YamlSource) -> None:
        self._source = source
        self._macros = macros.read_macros(source, ("macros",), source.data.get("macros"))
        self._draft = FileDraft()

    def convert(self) -> FileDraft:
        models = self._source.mapping(self._source.data.get("models"), ("models",))
        for name, value in models.items():
            path = ("models", name)
            if words.has_variable(name):
                raise self._source.wrong(path, "a model's name cannot contain a variable", "write it out")
            self._draft.models[name] = self._model(name, self._source.mapping(value, path), path)
        self._peers()
        if not self._draft.models:
            raise self._source.wrong(("models",), "there is no model", "name a file of llama-swap's that has some")
        self._settings()
        return self._draft

    # One model.

    def _model(self, name: str, model: Mapping[str, Any], path: Path) -> ModelDraft:
        own = macros.read_macros(self._source, (*path, "macros"), model.get("macros"))
        scope = {"MODEL_ID": name} | self._macros | own
        cmd = self._command(model.get("cmd"), scope, (*path, "cmd"))
        if not cmd:
            raise self._source.wrong((*path, "cmd"), "the command is missing", "add it, or remove the model")
        stop = self._command(model.get("cmdStop"), scope, (*path, "cmdStop"))
        stops_itself = any("${PID}" in word for word in stop)
        env = self._env(model.get("env"), scope, (*path, "env"))
        draft = draft_model(name, Command(cmd, () if stops_itself else stop, env))
        if stops_itself:
            note = Note("cmdStop", "llmux stops the engine itself, by SIGTERM and then SIGKILL", words.joined(stop))
            draft.note("stop_command", note)
        for variable, value in env.items():
            if words.PORT in value:
                draft.note("env", Note(variable, "llmux puts the port into a start_command only", value))
        self._address(draft, self._text(model, "proxy", scope, path))
        self._ready_path(draft, self._text(model, "checkEndpoint", scope, path))
        self._names(draft, model, scope, path)
        self._limits(draft, model, scope, path)
        for key in _others(model, _CONVERTED, left_out.OF_A_MODEL):
            _leave_out(draft, key, left_out.UNKNOWN, model[key])
        return draft

    def _command(self, value: object, scope: Macros, path: Path) -> tuple[str, ...]:
        if value is None or value == "":
            return ()
        if not isinstance(value, str):
            raise self._source.wrong(path, "must be a text")
        text = self._expanded(words.without_comments(value), scope, path)
        try:
            return words.split(text)
        except ValueError as error:
            raise self._source.wrong(path, str(error), "correct the command") from None

    def _expanded(self, text: str, scope: Macros, path: Path) -> str:
        text = macros.expand(text, scope, self._source, path)
        if name := macros.unknown(text):
            raise self._source.wrong(path, f"the macro ${{{name}}} is not defined", "define it, or correct its name")
        return text

    def _text(self, section: Mapping[str, Any], key: str, scope: Macros, path: Path) -> str:
        value = section.get(key)
        if value is None:
            return ""
        if not isinstance(value, str | int | float):
            raise self._source.wrong((*path, key), "must be a text")
        return self._expanded(plain(value), scope, (*path, key))

    def _number(self, section: Mapping[str, Any], key: str, scope: Macros, path: Path) -> str:
        """A whole number, or a variable that stands for one, as text; empty if absent."""
        text = self._text(section, key, scope, path)
        if text and not words.is_variable(text) and not re.fullmatch(r"-?[0-9]{1,9}", text, re.ASCII):
            raise self._source.wrong((*path, key), "must be a whole number")
        return text

    def _env(self, value: object, scope: Macros, path: Path) -> dict[str, str]:
        env = {}
        for index, item in enumerate(self._source.texts(value, path)):
            name, equals, text = macros.expand(item, scope, self._source, (*path, index)).partition("=")
            if not name or not equals:
                raise self._source.wrong((*path, index), "must be NAME=VALUE")
            env[name] = text
        return env

    def _address(self, draft: ModelDraft, proxy: str) -> None:
        """Where the engine listens: on the port that llmux gives it, or on one that the command itself contains."""
        command = str(draft.keys.get("start_command", ""))
        if not proxy:
            if command and words.PORT not in command:
                text = "no port is in it: the engine has to listen on {port}, or where the key 'port' says"
                draft.note("start_command", Note("cmd", text))
            return
        try:
            url = urlsplit(proxy.replace(words.PORT, "1"))
            port = url.port
        except ValueError:
            draft.note("port", Note("proxy", "this is no URL", proxy))
            return
        if url.scheme != "http" or url.hostname not in _LOOPBACK:
            text = (
                "llmux reaches the engines that it starts by HTTP on loopback. For a server that runs elsewhere, "
                "'engine: remote' and 'url' take the place of the command"
            )
            draft.note("port", Note("proxy", text, proxy))
            return
        if command and words.PORT not in proxy:
            draft.keys["port"] = port or 80
        if url.path not in ("", "/"):
            draft.note("port", Note("proxy", "llmux puts nothing before the paths that clients ask for", proxy))

    def _ready_path(self, draft: ModelDraft, path: str) -> None:
        if path in ("", "/health"):
            return
        if draft.engine != "command":
            draft.note("extra_args", Note("checkEndpoint", "llmux asks this engine's own /health", path))
        elif path.startswith("/"):
            draft.keys["ready_path"] = path
        else:
            text = "llmux waits until a path answers 200: name one that does"
            draft.note("ready_path", Note("checkEndpoint", text, path, ("ready_path: /",)))

    def _names(self, draft: ModelDraft, model: Mapping[str, Any], scope: Macros, path: Path) -> None:
        aliases = [
            self._expanded(alias, scope, (*path, "aliases", index))
            for index, alias in enumerate(self._source.texts(model.get("aliases"), (*path, "aliases")))
        ]
        if aliases:
            draft.keys["aliases"] = list(dict.fromkeys(aliases))
        if name := self._text(model, "useModelName", scope, path):
            if draft.engine == "command":
                text = "llmux asks the engine for the model by its name here: make the engine answer to that"
            else:
                text = "not needed: llmux gives the engine the model's name here"
            draft.note("aliases", Note("useModelName", text, name))

    def _limits(self, draft: ModelDraft, model: Mapping[str, Any], scope: Macros, path: Path) -> None:
        limit = self._number(model, "concurrencyLimit", scope, path)
        if limit not in ("", "0"):
            draft.keys["max_in_flight"] = int(limit) if limit.isdigit() else limit
            draft.note("max_in_flight", Note("concurrencyLimit", _LIMIT, limit))
        ttl = self._number(model, "ttl", scope, path)
        if ttl in ("", "-1"):
            ttl = self._number(self._source.data, "globalTTL", self._macros, ())
        if ttl:  # Else llama-server's own time for it counts, if the command has one.
            set_idle_seconds(draft, ttl)
        self._filters(draft, model.get("filters"), scope, (*path, "filters"))
        for key, why in left_out.OF_A_MODEL.items():
            _leave_out(draft, key, why, model.get(key))

    def _filters(self, draft: ModelDraft, value: object, scope: Macros, path: Path) -> None:
        for key, content in self._source.mapping(value, path).items():
            if key == "setParamsByID" and isinstance(content, dict):
                content = macros.expand(", ".join(content), scope, self._source, path)
            _leave_out(draft, f"filters.{key}", left_out.OF_FILTERS.get(key, left_out.UNKNOWN), content)

    # What is no model of this machine.

    def _peers(self) -> None:
        peers = self._source.mapping(self._source.data.get("peers"), ("peers",))
        served: list[str] = []
        for name, value in peers.items():
            path = ("peers", name)
            peer = self._source.mapping(value, path)
            for model in self._source.texts(peer.get("models"), (*path, "models")):
                draft = self._peer_model(name, model, peer, path)
                if model in self._draft.models:
                    draft.is_usable = False
                    draft.note("engine", Note(f"{name}/{model}", "another model has this name"))
                served.append(model)
                self._draft.models[model if draft.is_usable else f"{name}/{model}"] = draft

    def _peer_model(self, peer_name: str, model: str, peer: Mapping[str, Any], path: Path) -> ModelDraft:
        draft = ModelDraft()
        url = self._text(peer, "proxy", self._macros, path)
        if not url:
            raise self._source.wrong((*path, "proxy"), "the URL is missing")
        draft.keys = {"engine": "remote", "url": url, "aliases": [f"{peer_name}/{model}"]}
        if key := self._text(peer, "apiKey", self._macros, path):
            draft.keys["api_key"] = key
        if not (url.startswith(("http://", "https://")) or words.is_variable(url)):
            draft.is_usable = False
            draft.note("url", Note("proxy", "llmux reaches other machines by HTTP only"))
        for one, content in self._source.mapping(peer.get("filters"), (*path, "filters")).items():
            _leave_out(draft, f"filters.{one}", left_out.OF_PEER_FILTERS.get(one, left_out.UNKNOWN), content)
        for one in _others(peer, ("proxy", "models", "apiKey", "filters")):
            _leave_out(draft, one, left_out.OF_A_PEER.get(one, left_out.UNKNOWN), peer[one])
        return draft

    # Settings of the file.

    def _settings(self) -> None:
        draft, data = self._draft, self._source.data
        draft.note("port", Note("-listen", _PLACE, suggested=("port: 8080",)))
        for key, to, least in (
            ("healthCheckTimeout", "start_timeout_seconds", _START_SECONDS_MIN),
            ("unloadTimeout", "stop_timeout_seconds", 0),
        ):
            if (text := self._number(data, key, self._macros, ())) not in ("", "0"):
                draft.keys[to] = max(int(text), least) if text.isdigit() else text
        level = self._text(data, "logLevel", self._macros, ())
        if level and level not in _LOG_LEVELS:
            raise self._source.wrong(("logLevel",), f"must be one of {', '.join(_LOG_LEVELS)}")
        if level not in ("", "info"):
            draft.keys["log_level"] = _LOG_LEVELS[level]
        keys = self._source.texts(data.get("apiKeys"), ("apiKeys",))
        if keys:
            draft.keys["api_keys"] = [
                self._expanded(key, self._macros, ("apiKeys", index)) for index, key in enumerate(keys)
            ]
        self._routing()
        self._hooks()
        for key, why in left_out.OF_THE_FILE.items():
            _leave_out(draft, key, why, data.get(key))
        for key in _others(data, _CONVERTED_OF_THE_FILE, left_out.OF_THE_FILE):
            _leave_out(draft, key, left_out.UNKNOWN, data[key])

    def _routing(self) -> None:
        data = self._source.data
        routing = self._source.mapping(data.get("routing"), ("routing",))
        router = self._source.mapping(routing.get("router"), ("routing", "router"))
        settings = self._source.mapping(router.get("settings"), ("routing", "router", "settings"))
        rules: list[str] = []
        for path, value in (
            (("groups",), data.get("groups")),
            (("routing", "router", "settings", "groups"), settings.get("groups")),
        ):
            for name, group in self._source.mapping(value, path).items():
                rules += self._group(name, self._source.mapping(group, (*path, name)), (*path, name))
        if rules:
            self._draft.note("", Note("groups", left_out.GROUPS, suggested=("groups:", *rules)))
        for about, value in (
            ("matrix", data.get("matrix")),
            ("routing.router.settings.matrix", settings.get("matrix")),
        ):
            _leave_out(self._draft, about, left_out.MATRIX, value)
        _leave_out(self._draft, "routing.scheduler", left_out.SCHEDULER, routing.get("scheduler"))
        for key in _others(routing, ("router", "scheduler")):
            _leave_out(self._draft, f"routing.{key}", left_out.UNKNOWN, routing[key])

    def _group(self, name: str, group: Mapping[str, Any], path: Path) -> Iterator[str]:
        """Leave the group out; returns the line that would be the like of it in llmux's own groups, if there is one."""
        about = ".".join(map(str, path))
        members = self._source.texts(group.get("members"), (*path, "members"))
        self._draft.note("", Note(about, left_out.GROUP, ", ".join(members)))
        for key in _others(group, ("swap", "exclusive", "persistent", "members")):
            _leave_out(self._draft, f"{about}.{key}", left_out.UNKNOWN, group[key])
        # Members of which one at a time is there are so by 'swap', which is the default. 'exclusive' is about others.
        is_exclusive = group.get("swap") is not False and len(members) > 1
        rules = {"exclusive": is_exclusive, "persistent": _is_true(group.get("persistent"))}
        if held := [f"{rule}: true" for rule, is_held in rules.items() if is_held]:
            yield f"  {flow_text(name)}: {{models: {flow_list(members)}, {', '.join(held)}}}"

    def _hooks(self) -> None:
        hooks = self._source.mapping(self._source.data.get("hooks"), ("hooks",))
        on_startup = self._source.mapping(hooks.get("on_startup"), ("hooks", "on_startup"))
        if preload := self._source.texts(on_startup.get("preload"), ("hooks", "on_startup", "preload")):
            note = Note(
                "hooks.on_startup.preload", left_out.PRELOAD, ", ".join(preload), (f"preload: {flow_list(preload)}",)
            )
            self._draft.note("", note)
        _leave_out(self._draft, "hooks.on_startup.profile", left_out.OF_THE_FILE["profiles"], on_startup.get("profile"))
        for section, prefix, known in ((hooks, "hooks", "on_startup"), (on_startup, "hooks.on_startup", "preload")):
            for key in _others(section, (known, "profile")):
                _leave_out(self._draft, f"{prefix}.{key}", left_out.UNKNOWN, section[key])


def _others(section: Mapping[str, Any], *known: Container[str]) -> list[str]:
    """The keys of a section that none of ``known`` has, in their order."""
    return [key for key in section if not any(key in keys for keys in known)]


def _is_true(value: object) -> bool:
    return value is True or value in ("yes", "on")


def _leave_out(draft: FileDraft | ModelDraft, about: str, why: str, value: object) -> None:
    """Note a key that has no counterpart, unless its value asks for nothing."""
    if value in (None, False, "", 0, [], {}):
        return
    draft.note("", Note(about, why, plain(value) if isinstance(value, str | int | float) else ""))
