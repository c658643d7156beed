"""Files of each shape that users have become the expected document, with a comment for whatever is left out."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from llmux.config.load import loads
from llmux.config.migration.convert import Kind, convert
from llmux.errors import ConfigError

FIXTURES = Path(__file__).parents[3] / "fixtures" / "migration"
SOURCES = sorted(path for path in FIXTURES.iterdir() if ".expected" not in path.name)

TEXTS = [path.read_text() for path in SOURCES]
FRAGMENTS = ("", "null", "[]", "{}", "{a: b}", "${PORT}", "${env.X}", "'", '"', "\\", "\n", ": ", "- ", "run", "env ")

PLACE_OF_SWAP, PLACE_OF_ROUTER = "-listen", "--port"
NOTED = {
    "swap_macros": "--host --port --alias concurrencyLimit name description metadata unlisted startPort",
    "swap_containers": "-p cmd unloadTimeout checkEndpoint",
    "swap_engines": "--host --port --served-model-name useModelName cmdStop cmd --tools",
    "swap_groups": "--port filters.stripParams filters.setParams filters.setParamsByID checkEndpoint "
    "compat timeouts no_such_key groups groups.one-at-a-time groups.together groups.forever hooks.on_startup.preload "
    "sendLoadingState",
    "swap_matrix_peers": "--port cmd proxy closet/gemma filters.setParams timeouts matrix",
    "swap_routing": "--port --slot-save-path ${env.BIG_ARGS} cmd concurrencyLimit capabilities logToStdout "
    "captureBuffer store performance upstream newKey x-defaults profiles selectors routing.router.settings.groups.pair "
    "routing.router.settings.groups.pair.color routing.scheduler hooks.on_startup.profile",
    "swap_minimal": "--port cmd",
    "swap_workstation": "--port useModelName unlisted concurrencyLimit groups groups.speech metricsMaxInMemory",
    "presets_common": "load-on-startup",
    "presets_repositories": "api-key stop-timeout port [Qwen3VL-8B-Instruct-Q8_0] [downloaded]",
    "presets_flags": "md model brand-new-switch brand-new-value brand-new-off tools models-max no-such-switch-at-all",
    "presets_speculative": "models-max stop-timeout",
    "presets_services": "host api-key-file ssl-key-file ssl-cert-file load-on-startup",
}
"""What the comments are about, by fixture, beside the one about the port that clients use."""

ENVIRONMENT = dict.fromkeys(("MODELS", "HF_TOKEN", "CHAT_KEY", "OPENROUTER_API_KEY", "BIG_ARGS", "HF_HOME"), "x") | {
    "LIMIT": "3"
}
KEYS_OF_ENGINES = {"engine", "start_command", "stop_command", "ready_path", "url", "api_key"}


def expected_of(source: Path) -> Any:
    return yaml.safe_load(source.with_suffix("").with_suffix(".expected.yaml").read_text())


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_document_is_the_expected_one(source: Path) -> None:
    assert yaml.safe_load(convert(source.read_text(), source.name).text) == expected_of(source)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_content_tells_the_kind(source: Path) -> None:
    kind = Kind.PRESETS if source.suffix == ".ini" else Kind.LLAMA_SWAP
    assert convert(source.read_text(), "a file").kind is kind


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_whatever_is_left_out_has_a_comment_and_is_in_the_summary(source: Path) -> None:
    converted = convert(source.read_text(), source.name)
    drafts = (converted.draft, *converted.draft.models.values())
    place = PLACE_OF_ROUTER if converted.kind is Kind.PRESETS else PLACE_OF_SWAP
    notes = [note for draft in drafts for note in draft.all_notes()]
    assert {note.about.replace("\ue001", "${env.").replace("\ue002", "}") for note in notes} == {
        place,
        *NOTED[source.stem].split(),
    }
    comments = " ".join(
        line.strip().lstrip("# ") for line in converted.text.splitlines() if line.lstrip().startswith("#")
    )
    remarks = "\n".join(converted.remarks())
    for subject in NOTED[source.stem].split():
        assert subject in comments
        assert subject in remarks
    for note in notes:
        assert note.text.replace("\ue000", "${PORT}") in comments
        assert all(f"# {line}" in converted.text for line in note.suggested)


UNFINISHED = {
    "swap_matrix_peers": ["models.elsewhere.start_command"],
    "swap_minimal": ["models.b.start_command"],
}
"""Commands without a port, of which only their author knows where they listen; a comment in the file says so."""


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_llmux_itself_accepts_what_was_written(source: Path) -> None:
    problems: list[str] = []
    try:
        loads(convert(source.read_text(), source.name).text, environment=ENVIRONMENT)
    except ConfigError as error:
        problems = [problem.path for problem in error.problems]
    assert problems == UNFINISHED.get(source.stem, [])


def test_the_groups_that_are_proposed_are_llmux_s_own() -> None:
    models = ", ".join(f"{name}: {{cmd: llama-server -m {name}.gguf}}" for name in "abc")
    groups = (
        "'one, two': {members: [a, b]}, always: {members: [c], persistent: true}, free: {swap: false, members: [a, c]}"
    )
    source = f"models: {{{models}}}\ngroups: {{{groups}}}"
    lines = convert(source, "a file").text.splitlines()
    proposed = lines.index("# groups:")
    for number in range(proposed, proposed + 3):
        lines[number] = lines[number].removeprefix("# ")
    assert yaml.safe_load("\n".join(lines))["groups"] == {
        "one, two": {"models": ["a", "b"], "exclusive": True},
        "always": {"models": ["c"], "persistent": True},
    }
