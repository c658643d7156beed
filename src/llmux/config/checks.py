"""Checks across keys. Each yields all of its problems; those within one key are the settings' own business."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import assert_never

from llmux import host_names
from llmux.config import groups, placement, preloading
from llmux.config.model import ModelSettings
from llmux.config.policy import ABORTING
from llmux.config.problems import dotted
from llmux.config.remedies import nearest
from llmux.config.settings import ObjectStoreSettings, PrefetchedModels, PrefetchSettings, Settings
from llmux.core.eviction import Drain, Eviction, Process
from llmux.core.expected_course import HORIZON_SECONDS
from llmux.core.names import ModelName, NameKind
from llmux.engines import arguments
from llmux.engines.base import Engine
from llmux.engines.files import exists
from llmux.engines.registry import KEYS_OF_SOME_KINDS, KINDS, described_kinds
from llmux.engines.urls import WrongUrl, parse_url
from llmux.errors import Problem

S3_KEYS = ("endpoint", "bucket", "access_key", "secret_key")
"""0.7.7's required keys of an object store."""
_SECRET_FLAG = re.compile("key|token|password|secret")
_INFERENCE_PATH = re.compile(r"(/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~:@!$&'()+,;=-]+)+")
_NAMED_BY = {NameKind.ALIAS: "aliases", NameKind.SERVED: "extra_args", NameKind.ADAPTER: "extra_args"}
_ORIGIN = re.compile(r"\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\s*]+/?")
_TYPOGRAPHIC = re.compile("[\u2018-\u201f\u2010-\u2015\u2212\u00ab\u00bb\u00a0\u200b\ufeff]")
_OWN_TREES = ("/control", "/metrics", "/upstream", "/health", "/ready", "/models", "/v1/models")


def problems(settings: Settings) -> Iterator[Problem]:
    """Every combination that cannot work. Reads the disk: ``checkpoint_path`` must exist."""
    if unknown := list(unknown_engines(settings)):
        # Of such a model nothing else is known.
        yield from unknown
        return
    yield from own_kinds(settings)
    yield from names(settings)
    yield from listeners(settings)
    yield from weights(settings)
    yield from inference_paths(settings)
    yield from origins(settings)
    yield from engines(settings)
    yield from addresses(settings)
    yield from placement.problems(settings)
    yield from _reserve(settings)
    yield from residents(settings)
    yield from preloading.problems(settings)
    yield from groups.problems(settings)
    yield from checkpoints(settings)
    if settings.max_body_bytes > settings.queue_limit_bytes:
        yield Problem(
            "max_body_bytes", "is larger than queue_limit_bytes: such a body could never wait", "lower it or raise that"
        )


def unknown_engines(settings: Settings) -> Iterator[Problem]:
    """Every model's engine must be of a kind that llmux knows."""
    for name, model in settings.models.items():
        if model.engine not in settings.kinds:
            path = dotted(("models", name, "engine"))
            known = (*KINDS, *settings.engines, *described_kinds())
            yield Problem(path, f"'{model.engine}' is not a kind of engine", nearest(model.engine, known))


def own_kinds(settings: Settings) -> Iterator[Problem]:
    """A description must not have the name of a kind that is more than a description."""
    for name in settings.engines:
        if name in KINDS:
            yield Problem(dotted(("engines", name)), "is a kind that llmux knows by itself", "choose another name")


def names(settings: Settings) -> Iterator[Problem]:
    """Names must be usable in URLs, headers and file names, and each must stand for one model."""
    for name, model in settings.models.items():
        if reason := _wrong_name(name):
            yield Problem(dotted(("models", name)), f"not usable as a model's name: {reason}", "rename it")
        for index, alias in enumerate(model.aliases):
            if reason := _wrong_name(alias):
                path = dotted(("models", name, "aliases", index))
                yield Problem(path, f"not usable as a model's name: {reason}", "rename it")
    owners = {name: name for name in settings.models}
    for key in settings.models:
        for named in settings.names_of(key):
            owner = owners.setdefault(named.name, key)
            if owner != key:
                yield Problem(
                    dotted(("models", key, _NAMED_BY[named.kind])),
                    f"'{named.name}' stands for '{key}' here, and for '{owner}' too",
                    "a name can stand for one model only: rename one",
                )


def listeners(settings: Settings) -> Iterator[Problem]:
    """``host`` must be an address or a name, and no port may be used twice."""
    if wrong := _wrong_host(settings.host):
        yield Problem("host", *wrong)
    yield from ports(settings)


def weights(settings: Settings) -> Iterator[Problem]:
    """There must be some, and the engine must not take their path for a flag."""
    for name, model in settings.models.items():
        path = dotted(("models", name, "model_path"))
        if not model.model_path and settings.engine_of(name).needs_model_path:
            yield Problem(path, "is missing", "name the weights: a Hugging Face id, a directory or a file")
        if model.model_path.startswith("-"):
            yield Problem(path, "begins with '-', so that the engine would take it for a flag", "write ./ before it")


def ports(settings: Settings) -> Iterator[Problem]:
    """No port may be used twice; 0 means any or none."""
    uses: list[tuple[str, int | None]] = [
        ("port", settings.port),
        ("metrics_port", settings.metrics_port),
        ("admin_port", settings.admin_port),
    ]
    uses += [(dotted(("models", name, "port")), model.port) for name, model in settings.models.items()]
    first: dict[int, str] = {}
    for path, port in uses:
        if not port:
            continue
        if port in first:
            remedy = "choose another, or leave it out: a free one is chosen" if path.startswith("models.") else ""
            yield Problem(path, f"{port} is already used by {first[port]}", remedy or "choose another")
        first.setdefault(port, path)


def inference_paths(settings: Settings) -> Iterator[Problem]:
    """Paths must be written as engines' routers compare them."""
    for index, path in enumerate(settings.inference_paths):
        if not _INFERENCE_PATH.fullmatch(path):
            yield Problem(
                dotted(("inference_paths", index)),
                f"'{path}' is not a path as requests have it",
                "write it as /v1/videos: from the first slash on, without query, pattern or slash at the end",
            )
        elif any(f"{path}/".startswith(f"{tree}/") for tree in _OWN_TREES):
            yield Problem(dotted(("inference_paths", index)), f"'{path}' is llmux's own", "remove it")


def origins(settings: Settings) -> Iterator[Problem]:
    """Origins and hosts are compared with what browsers send."""
    for index, origin in enumerate(settings.cors_origins):
        if not _ORIGIN.fullmatch(origin):
            remedy = 'write it as https://chat.example.org, with the port if there is one and without a path; or "*"'
            yield Problem(dotted(("cors_origins", index)), f"'{origin}' is not an origin", remedy)
    for index, host in enumerate(settings.allowed_hosts):
        # As clients send it, and without the dot that may end it.
        if not host_names.is_name(host) or not host.isascii() or host.endswith("."):
            remedy = "write it as llm.example.org, without scheme, port and path"
            yield Problem(dotted(("allowed_hosts", index)), f"'{host}' is not a host's name", remedy)


def engines(settings: Settings) -> Iterator[Problem]:
    """What is wrong with a model's engine: keys of other kinds, arguments that llmux sets, and what its kind knows."""
    for name, model in settings.models.items():
        engine = settings.engine_of(name)
        foreign = (KEYS_OF_SOME_KINDS - engine.own_keys) | engine.keys_without_use
        for key in sorted(foreign & model.model_fields_set):
            yield Problem(dotted(("models", name, key)), f"a {engine.kind} engine has no use for it", "remove it")
        yield from _wrong_arguments(dotted(("models", name, "extra_args")), engine)
        adapters = [adapter for adapter, _ in engine.adapters]
        if model.canary_adapter is not None and model.canary_adapter not in adapters:
            path = dotted(("models", name, "canary_adapter"))
            yield Problem(
                path,
                f"the engine has no adapter '{model.canary_adapter}'",
                nearest(model.canary_adapter, adapters, "remove it"),
            )
        for problem in engine.problems(settings.eviction_of(name)):
            yield replace(problem, path=f"{dotted(('models', name))}.{problem.path}")


def addresses(settings: Settings) -> Iterator[Problem]:
    """An engine that llmux does not start must say where it serves."""
    for name, model in settings.models.items():
        engine = settings.engine_of(name)
        if engine.runs_as_process:
            continue
        path = dotted(("models", name, "url"))
        if model.url is not None:
            try:
                parse_url(model.url)
            except WrongUrl as wrong:
                yield Problem(path, str(wrong), wrong.remedy)
            if model.port is not None and "port" not in engine.keys_without_use:
                yield Problem(dotted(("models", name, "port")), "is in url already", "remove it")
        elif model.port is None or "port" in engine.keys_without_use:
            remedy = "write where it serves, as http://127.0.0.1:8080 or https://api.example.org/v1"
            yield Problem(path, "is missing", remedy)


def _keys_in_clear(name: str, model: ModelSettings) -> Iterator[Problem]:
    if model.url is None or model.api_key is None:
        return
    try:
        url = parse_url(model.url)
    except WrongUrl:
        return
    if not url.is_https and not url.is_loopback:
        message = f"the api_key travels to {url.host} in clear, where others can read it"
        yield Problem(dotted(("models", name, "url")), message, "use https://, or a tunnel that ends on loopback")


def _wrong_arguments(path: str, engine: Engine) -> Iterator[Problem]:
    words = engine.options.extra_args
    for index, word in enumerate(words):
        if (parts := arguments.flag_with_more(word)) is not None:
            yield Problem(f"{path}.{index}", *_joined(*parts))
    if engine.completes_flags:
        for short, full in arguments.abbreviated(words, engine.reserved_flags):
            yield Problem(path, f"{short} would be read as {full}, which is set by llmux itself", "remove it")
    for flag in arguments.present(words, engine.reserved_flags):
        remedy = "use the model's port" if flag == "--port" else "engines listen on loopback only"
        yield Problem(path, f"{flag} is set by llmux itself", f"remove it; {remedy}")
    for number in ("gpu_count", "max_in_flight"):
        try:
            getattr(engine, number)
        except ValueError as error:
            yield Problem(path, str(error), "correct it")


def residents(settings: Settings) -> Iterator[Problem]:
    """A model that never leaves the GPU must be the only one there."""
    if len(_gpu_users(settings)) <= 1:
        return
    for path, affected in _that_stay(settings).items():
        yield Problem(
            path,
            f"retain+keep_running never leaves the GPU, so no other model could run beside {_quoted(affected)}",
            "use offload+keep_running",
        )


def checkpoints(settings: Settings) -> Iterator[Problem]:
    """The requirements of ``checkpoint`` and ``checkpoint_path``."""
    users = [
        name
        for name, model in settings.models.items()
        if settings.eviction_of(name).process is Process.CHECKPOINT or model.checkpoint_path is not None
    ]
    if users and settings.checkpoint is None:
        yield Problem(
            "checkpoint",
            f"the section is missing; checkpoint and checkpoint_path need it: {_quoted(users)}",
            "add 'checkpoint: {}' for its defaults",
        )
    if settings.checkpoint is not None and settings.checkpoint.object_store is not None:
        yield from _object_store(settings.checkpoint.object_store)
    stored = settings.checkpoint is not None and settings.checkpoint.object_store is not None
    for name, model in settings.models.items():
        if model.checkpoint_path is not None and not stored and not exists(model.checkpoint_path):
            yield Problem(
                dotted(("models", name, "checkpoint_path")),
                f"{model.checkpoint_path} does not exist",
                "correct it, or configure checkpoint.object_store to fetch it from",
            )


def _object_store(store: ObjectStoreSettings) -> Iterator[Problem]:
    """It is described by its URL, or by 0.7.7's keys."""
    path = "checkpoint.object_store"
    given = [key for key in (*S3_KEYS, "region") if key in store.model_fields_set]
    if store.url is not None:
        for key in given:
            remedy = "remove it; what it says belongs into url and options"
            yield Problem(f"{path}.{key}", "is given beside url, which describes the store alone", remedy)
        if "://" not in store.url:
            remedy = "write it as s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY"
            yield Problem(f"{path}.url", "is not a URL", remedy)
        return
    if not given:
        yield Problem(path, "does not say where the store is", f"give url, or all of {', '.join(S3_KEYS)}")
        return
    for key in S3_KEYS:
        if getattr(store, key) is None:
            yield Problem(f"{path}.{key}", "is missing", f"give all of {', '.join(S3_KEYS)}; or url instead of them")
    if store.options:
        yield Problem(
            f"{path}.options", "belong to url, which is not given", "remove them, or describe the store by url"
        )
    if store.endpoint is not None and not store.endpoint.startswith(("http://", "https://")):
        yield Problem(f"{path}.endpoint", "is not a URL", "write it as https://s3.example.org or http://127.0.0.1:9000")


def warnings(settings: Settings) -> Iterator[Problem]:
    """What works, but probably not as intended."""
    if len(settings.models) == 1:
        for path in _that_stay(settings):
            yield Problem(path, "retain+keep_running never leaves the GPU; works only while there is a single model")
    yield from _weights_that_stay(settings)
    yield from _gpus_without_effect(settings)
    yield from _nearly_whole_gpus(settings)
    yield from _same_weights(settings)
    for name, model in settings.models.items():
        eviction = settings.eviction_of(name)
        if model.drain is Drain.FREEZE and not eviction.keeps_process:
            path = dotted(("models", name, "drain"))
            yield Problem(
                path,
                f"{eviction} ends the engine and its requests: they are drained instead of frozen",
                "choose an 'eviction' that keeps its process, or 'drain: wait'",
            )
    policy = settings.policy
    if policy.drain_before_switch is False and policy.policy_type not in ABORTING:
        yield Problem(
            "policy.drain_before_switch", f"{policy.policy_type} always drains", "use the model's 'drain: abort'"
        )
    for name, model in settings.models.items():
        engine = settings.engine_of(name)
        yield from _odd_arguments(dotted(("models", name, "extra_args")), engine)
        for problem in engine.warnings():
            yield replace(problem, path=f"{dotted(('models', name))}.{problem.path}")
        yield from _odd_names(name, settings.names_of(name))
        yield from _keys_in_clear(name, model)
        yield from _typographic_texts(dotted(("models", name)), model)
    yield from _keys_of_two_kinds(settings)
    yield from _limits_beyond_forecasts(settings)
    yield from _prefetch_without_effect(settings.prefetch, has_log=settings.access_log is not None)


def advice(settings: Settings) -> Iterator[Problem]:
    """What works as intended, and could work better."""
    if len(settings.models) < 2:
        return  # It never leaves for another one.
    for name in settings.models:
        if settings.drain_of(name) is Drain.FREEZE:
            for problem in settings.engine_of(name).advice(settings.eviction_of(name)):
                yield replace(problem, path=f"{dotted(('models', name))}.{problem.path}")


def _prefetch_without_effect(prefetch: PrefetchSettings, *, has_log: bool) -> Iterator[Problem]:
    limits = sorted(prefetch.model_fields_set - {"models"})
    match prefetch.models:
        case PrefetchedModels.NONE:
            for key in limits:
                yield Problem(
                    f"prefetch.{key}", "has no effect while nothing is read ahead", "remove it, or set models"
                )
        case PrefetchedModels.QUEUED:
            pass
        case PrefetchedModels.PREDICTED:
            if not has_log:
                message = "without an access log, a restart of llmux forgets what the prediction has learnt"
                yield Problem("prefetch.models", message, "set access_log")
        case _:
            assert_never(prefetch.models)


def _typographic_texts(path: str, model: ModelSettings) -> Iterator[Problem]:
    """Quotes, dashes and blanks that YAML and engines take for ordinary characters."""
    texts = {"model_path": model.model_path, "command": model.command or ""}
    texts |= {f"extra_args.{index}": word for index, word in enumerate(model.extra_args)}
    for key, text in texts.items():
        if found := _TYPOGRAPHIC.match(text):
            message = f"begins with the character {found[0]!a} of word processors and web pages"
            yield Problem(f"{path}.{key}", message, "type it anew")


def _odd_names(model: str, names: Iterable[ModelName]) -> Iterator[Problem]:
    for named in names:
        if named.name != named.name.strip() and named.kind in (NameKind.MODEL, NameKind.ALIAS):
            path = ("models", model) if named.kind is NameKind.MODEL else ("models", model, "aliases")
            message = f"{named.name!r} has a blank at its beginning or end, which headers cannot carry"
            yield Problem(dotted(path), message, "remove it")


def _keys_of_two_kinds(settings: Settings) -> Iterator[Problem]:
    interactive = {key.get_secret_value() for key in settings.api_keys}
    for index, key in enumerate(settings.batch_api_keys):
        if key.get_secret_value() in interactive:
            message = "this key is in api_keys, too: all of its requests are batch"
            yield Problem(dotted(("batch_api_keys", index)), message, "keep it in one of the lists")
    clients = interactive | {key.get_secret_value() for key in settings.batch_api_keys}
    if settings.admin_key is not None and settings.admin_key.get_secret_value() in clients:
        yield Problem("admin_key", "is an API key, too: whoever may ask may also switch and pin", "use another key")


def _limits_beyond_forecasts(settings: Settings) -> Iterator[Problem]:
    """A longer limit than forecasts reach is of use only to a model that is to be spared one of all models."""
    for key in ("refuse_after_seconds", "batch_refuse_after_seconds"):
        of_all: float | None = getattr(settings.policy, key)
        too_long: list[tuple[str, ...]] = [("policy", key)] if of_all is not None and of_all > HORIZON_SECONDS else []
        if of_all is None or too_long:
            own = {name: getattr(model, key) for name, model in settings.models.items()}
            too_long += [("models", name, key) for name, limit in own.items() if (limit or 0) > HORIZON_SECONDS]
        for path in too_long:
            message = f"has no effect: no wait is foreseen for longer than {HORIZON_SECONDS:g} s"
            yield Problem(dotted(path), message, "lower it, or remove it")


def _odd_arguments(path: str, engine: Engine) -> Iterator[Problem]:
    words = engine.options.extra_args
    if words and not words[0].lstrip().startswith("-"):
        yield Problem(
            f"{path}.0", "is neither a flag nor the value of one", "begin with a flag, such as --max-model-len"
        )
    completed = arguments.abbreviated(words, engine.read_flags) if engine.completes_flags else ()
    for short, full in completed:
        yield Problem(path, f"{short} may be read as {full} by the engine, but not by llmux", f"write {full}")
    for index, word in enumerate(words):
        if flag := arguments.second_flag(word):
            message = f"{flag} is part of the value before it"
            yield Problem(f"{path}.{index}", message, "write each flag as an item of its own")


def _joined(flag: str, rest: str) -> tuple[str, str]:
    """The message and the remedy for a flag that shares its word with more."""
    if not rest:
        return f"{flag} has a blank at its end", "remove it"
    if any(word.startswith("--") for word in rest.split()):
        return f"several words in one, the first of them {flag}", "write each word as an item of its own"
    shown = "its value" if _SECRET_FLAG.search(flag) or len(rest) > 60 else rest
    return "two words in one", f"write {flag} and {shown} as two items"


def _same_weights(settings: Settings) -> Iterator[Problem]:
    first: dict[tuple[object, ...], str] = {}
    for name, model in settings.models.items():
        started = settings.engine_of(name)
        engine = (
            *(model.engine, model.model_path, settings.command_of(name), started.arguments),
            *(word.replace("{name}", name) for word in model.start_command or ()),
            *(model.url, tuple(sorted(model.env.items()))),
        )
        other = first.setdefault(engine, name)
        if other != name:
            yield Problem(
                dotted(("models", name)),
                f"has the same weights and arguments as '{other}': two engines of one model that evict each other",
                f"give '{other}' the alias '{name}' instead",
            )


def _that_stay(settings: Settings) -> dict[str, list[str]]:
    """The models that take the GPU and never leave it, by the path of the key that says so."""
    users = _gpu_users(settings)
    return _by_eviction_path(
        settings, lambda name, eviction: name in users and not _frees_memory(settings, users[name], eviction)
    )


def _frees_memory(settings: Settings, engine: Engine, eviction: Eviction) -> bool:
    # Where models are placed by memory, that of the weights alone would have to be known.
    return eviction.leaves_the_gpu or (engine.frees_memory(eviction) and not settings.places_by_memory)


def _weights_that_stay(settings: Settings) -> Iterator[Problem]:
    """Models that leave but for their weights: nothing tells llmux whether those fit beside the other models."""
    users = _gpu_users(settings)
    if len(users) <= 1 or settings.places_by_memory:
        return
    staying = _by_eviction_path(
        settings,
        lambda name, eviction: name in users and not eviction.leaves_the_gpu and users[name].frees_memory(eviction),
    )
    for path, affected in staying.items():
        others = (engine for name, engine in users.items() if affected != [name])
        flags = sorted({engine.gpu_share_flag for engine in others if engine.gpu_share_flag is not None})
        yield Problem(
            path,
            f"the weights of {_quoted(affected)} stay on the GPU, where they must fit beside each other model",
            f"leave room for them with the others' {' or '.join(flags)}" if flags else "",
        )


def _reserve(settings: Settings) -> Iterator[Problem]:
    """Whether a process is ours is seen by its ancestors, which those of containers and hooks do not have."""
    unseen = [name for name, engine in _gpu_users(settings).items() if not engine.sees_given_gpus]
    if settings.gpu_memory_reserve is not None and unseen:
        yield Problem(
            "gpu_memory_reserve",
            f"llmux cannot tell the processes of {_quoted(unseen)} from other programs, and would take them for those",
            "remove it, or run these engines as processes of llmux's",
        )


def _nearly_whole_gpus(settings: Settings) -> Iterator[Problem]:
    """Models whose engines take nearly all of a GPU because nobody told them otherwise."""
    users = _gpu_users(settings)
    if not settings.places_by_memory or len(users) < 2:
        return
    for name, engine in users.items():
        flag, share = engine.gpu_share_flag, engine.start_share
        is_said = flag is None or bool(arguments.present(engine.arguments, (flag,)))
        if is_said or share is None or engine.options.gpu_memory_mib:
            continue
        message = f"its engine takes {share:.0%} of each of its GPUs, so that hardly another model fits beside it"
        yield Problem(dotted(("models", name)), message, "set gpu_memory, if it can do with less")


def _gpus_without_effect(settings: Settings) -> Iterator[Problem]:
    """Keys that say where models may be, though each is everywhere."""
    if settings.share_gpus is not False:
        return
    given = ["gpus"] if settings.gpus else []
    given += [dotted(("models", name, "gpus")) for name, model in settings.models.items() if model.gpus is not None]
    for path in given:
        message = "has no effect: share_gpus is false, so that each model takes all of every GPU"
        yield Problem(path, message, "remove it, or share_gpus")


def _gpu_users(settings: Settings) -> dict[str, Engine]:
    """The engines that take memory of the GPUs that llmux schedules, by their models."""
    engines = {name: settings.engine_of(name) for name in settings.models}
    return {name: engine for name, engine in engines.items() if engine.uses_gpu}


def _by_eviction_path(settings: Settings, wanted: Callable[[str, Eviction], bool]) -> dict[str, list[str]]:
    """The models whose eviction matches, by the path of the key that sets it."""
    found: dict[str, list[str]] = {}
    for name, model in settings.models.items():
        if wanted(name, settings.eviction_of(name)):
            path = "policy.eviction" if model.eviction is None else dotted(("models", name, "eviction"))
            found.setdefault(path, []).append(name)
    return found


def _wrong_host(host: str) -> tuple[str, str] | None:
    """What is wrong with an address to listen on, and the remedy; None if nothing is."""
    if host == "*" or host_names.is_address(host):
        return None
    if "://" in host:
        named, _ = host_names.host_of(host) or ("127.0.0.1", None)
        return "is a URL, not an address", f"write {named}, and the port into port"
    if host.startswith("[") and host_names.is_address(host[1:].partition("]")[0]):
        return "is an address in brackets", f"write {host[1:].partition(']')[0]}"
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit() and host_names.is_name(name):
        return "contains a port", f"write {name}, and {port} into port"
    if not host_names.is_name(host) or re.fullmatch(r"[0-9.]+", host):
        return "is neither an address nor the name of a host", "write 127.0.0.1 for this machine only, 0.0.0.0 for all"
    return None


def _wrong_name(name: str) -> str:
    if not name:
        return "it is empty"
    if not name.isprintable():
        return "it contains control or other unprintable characters"
    if name.startswith("-"):
        return "it begins with '-', so that the engine would take it for a flag"
    if any(segment in ("", ".", "..") for segment in name.split("/")):
        return "between slashes there must be something, and neither '.' nor '..'"
    return ""


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
