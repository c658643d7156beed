"""The engines' programs and versions, and the models' files."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmux.config import draining
from llmux.config.settings import Settings
from llmux.core.eviction import Drain
from llmux.diagnosis.findings import Finding, Level, error, ok, unknown, warning
from llmux.engines.base import Engine
from llmux.engines.files import exists, hub_cache, hub_folder, hub_home, is_directory, is_file

VERSION_SECONDS = 10.0
HUB_TRUE = frozenset(("1", "ON", "YES", "TRUE"))
"""What huggingface_hub takes for true in its variables."""
HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


def check_engines(settings: Settings, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Of each program that is there, what version it is, and whether that can do what is configured."""
    programs: dict[tuple[str, str, str | None], list[str]] = {}
    for name, model in settings.models.items():
        engine = settings.engine_of(name)
        if engine.runs_as_process:
            path = model.env.get("PATH", environment.get("PATH"))
            programs.setdefault((engine.kind, engine.options.program, path), []).append(name)
    for (kind, program, path), names in programs.items():
        found = shutil.which(program, path=path)
        if found is None:
            # One of the configuration's findings.
            continue
        what, engine = f"{kind} ({', '.join(names)})", settings.engine_of(names[0])
        version = _version_of(engine, Path(found))
        yield from _abilities(what, found, version, names, settings)
    for name in settings.models:
        if (
            finding := _weights(settings.engine_of(name), name, {**environment, **settings.models[name].env})
        ) is not None:
            yield finding
    for drained in draining.drained(settings):
        yield Finding(Level.OK, "requests at a switch", str(drained), drained.remedy)


def _abilities(what: str, found: str, version: str | None, names: list[str], settings: Settings) -> Iterator[Finding]:
    if version is None:
        yield unknown(what, f"{found}, of a version that cannot be read without starting it")
        return
    yield ok(what, f"{found}, version {version}")
    for name in names:
        engine = settings.engine_of(name)
        freezes = settings.drain_of(name) is Drain.FREEZE
        if lack := engine.lacks(version, settings.eviction_of(name), freezes=freezes):
            yield warning(name, f"{engine.kind} {version} cannot {lack}", "update it, or change the configuration")


def _version_of(engine: Engine, program: Path) -> str | None:
    """The version of a Python package, by the metadata beside its program; else what ``--version`` prints quickly."""
    if engine.package is not None:
        # PREFIX/bin/PROGRAM belongs to PREFIX/lib/python3.X/site-packages.
        for prefix in (program.parent.parent, program.resolve().parent.parent):
            for metadata in prefix.glob(f"lib/python3*/site-packages/{engine.package}-*.dist-info"):
                return metadata.name.removesuffix(".dist-info").partition("-")[2]
        return None
    if not engine.version_arguments:
        return None
    try:
        told = subprocess.run(
            [program, *engine.version_arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"version:?\s+(\S+)", told.stdout + told.stderr)
    return match[1] if match else None


def _weights(engine: Engine, name: str, environment: Mapping[str, str]) -> Finding | None:
    """Whether the weights of a Hugging Face id are there already; None for all others."""
    path = engine.options.model_path
    if not engine.needs_model_path or not HUB_ID.fullmatch(path) or exists(path):
        return None
    home, cache, folder = hub_home(environment), hub_cache(environment), hub_folder(path, environment)
    remedy = f"'hf download {path}' fetches it before the first request has to wait for it"
    if is_directory(folder):
        if any(folder.glob("blobs/*.incomplete")):
            return warning(name, f"{path} is only in part in {cache}: a download of it was interrupted", remedy)
        return ok(name, f"{path} is in {cache}")
    if environment.get("HF_HUB_OFFLINE", "").upper() in HUB_TRUE:
        return error(name, f"{path} is not in {cache}, and HF_HUB_OFFLINE forbids to download it", remedy)
    has_token = bool(environment.get("HF_TOKEN")) or is_file(home / "token")
    token = "" if has_token else ", and gated ones need HF_TOKEN, which is not set"
    return warning(name, f"{path} is not in {cache}: the first start downloads it{token}", remedy)
