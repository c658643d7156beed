"""Files of llama-swap and of llama.cpp's router, migrated by ``llmux migrate``, start and answer for every model.

The llama-server is the real one. In vLLM's place stands the simulated engine, under the name ``vllm``, and the program
``my-server`` is tests/support/plain_server.py: of those two only the command line and the addresses are shown.
"""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.support import plain_server, real_llama
from tests.support.command import run_llmux
from tests.support.server import NO_CERTIFICATES, SIMULATED_ENGINE, chat, http_client, llmux_server

pytestmark = [
    pytest.mark.llama,
    pytest.mark.anyio,
    pytest.mark.skipif(bool(real_llama.MISSING), reason=real_llama.SKIP_REASON),
]

SOURCES = Path(__file__).parents[2] / "fixtures" / "migration_served"
EMBEDDINGS = "embed"
"""The name in every file of a model that answers embeddings only."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a file becomes: whom to ask, and what its owner is told."""

    models: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Whose."""
    told: tuple[str, ...] = ()
    """Each is in the command's output: what it leaves to a person, and what behaves differently."""


GROUPS, WARMUP = "llmux decides by memory", "warmup: true"
FILES = {
    "swap_minimal.json": Migrated(("a", "b"), told=("port: 8080",)),
    "swap_macros.yaml": Migrated(
        ("chat", "short"),
        {"gpt-4o": "chat", "claude-sonnet-4": "chat"},
        ("short: concurrencyLimit: ", "short: name: "),
    ),
    "swap_groups.yaml": Migrated(
        ("coder", "writer", "embed"),
        told=(f"groups.chats: {GROUPS}", f"groups.forever: {GROUPS}", "coder: filters.stripParams: ", "preload: ["),
    ),
    "swap_engines.yaml": Migrated(("big", "small", "own"), {"tiny": "small"}, ("big: useModelName: ",)),
    "presets_common.ini": Migrated(("chat", "writer"), {"gpt-4o": "writer", "o1": "writer"}, (WARMUP,)),
    "presets_plain.ini": Migrated(
        ("a", "embed"),
        told=("Only as a comment: found-by-the-router", "Set model_path to the file and remove the #"),
    ),
}


def test_every_file_is_tried() -> None:
    assert {path.name for path in SOURCES.iterdir()} == FILES.keys()


def furnish(directory: Path) -> dict[str, str]:
    """Put the weights where the files look for them, and return the environment in which they find their programs."""
    weights, programs = directory / "models", directory / "bin"
    weights.mkdir()
    programs.mkdir()
    for name in ("a", "b", "embed"):
        (weights / f"{name}.gguf").symlink_to(real_llama.model_path(name))
    own = (sys.executable, plain_server.__file__)
    for name, words in (("llama-server", (real_llama.program(),)), ("vllm", (SIMULATED_ENGINE,)), ("my-server", own)):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (programs / name).chmod(0o755)
    return {
        "PATH": f"{programs}:/usr/bin:/bin",
        "MODELS": str(weights),
        "HF_TOKEN": "a token",
        "XDG_CACHE_HOME": str(directory / "cache"),
        **NO_CERTIFICATES,
    }


async def ask(session: aiohttp.ClientSession, url: str, model: str, answers_as: str) -> str:
    """What the model answers, as text; it has to call itself ``answers_as``."""
    path, body = "chat/completions", chat(model, "once upon a time", temperature=0)
    if model == EMBEDDINGS:
        path, body = "embeddings", {"model": model, "input": "once upon a time"}
    async with session.post(f"{url}/v1/{path}", json=body) as response:
        assert response.status == 200, f"{model}: {await response.text()}"
        document = await response.json()
    assert document["model"] == answers_as
    if model == EMBEDDINGS:
        return str(document["data"][0]["embedding"])
    return str(document["choices"][0]["message"]["content"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FILES)
async def test_a_migrated_file_answers_for_every_model(tmp_path: Path, name: str) -> None:
    environment, migrated = furnish(tmp_path), FILES[name]
    written = tmp_path / "llmux.yaml"
    ended = await run_llmux("migrate", str(SOURCES / name), "--output", str(written), directory=tmp_path)
    assert ended.code == 0, ended
    for told in migrated.told:
        assert told in ended.errors
    assert tuple(yaml.safe_load(written.read_text())["models"]) == migrated.models

    # Nobody has to edit the file; but tests run beside each other, and only the main port can be chosen by an option.
    written.write_text(f"{written.read_text()}\nmetrics_port: 0\n")
    checked = await run_llmux("check", "-c", str(written), directory=tmp_path, **environment)
    assert checked.code == 0, checked
    command = ["serve", "-c", str(written), "--port", "0"]
    async with (
        llmux_server(None, tmp_path, command=command, environment=environment) as llmux,
        http_client() as session,
    ):
        answers = {model: await ask(session, llmux.url, model, model) for model in migrated.models}
        assert all(answers.values())
        assert len(set(answers.values())) == len(answers), "each has weights of its own, and says something else"
        for alias, model in migrated.aliases.items():
            assert await ask(session, llmux.url, alias, model) == answers[model]
        first = migrated.models[0]
        assert await ask(session, llmux.url, first, first) == answers[first]
