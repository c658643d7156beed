"""What is generated from the settings: the JSON schema for editors, and the tables in docs/configuration.md.

``make schema`` writes both; tests fail when a committed file is out of date.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmux.config import legacy
from llmux.config.load import ANCHOR_PREFIX
from llmux.config.settings import Settings

TABLES = (
    ("Top level", None),
    ("`models.NAME`", "ModelSettings"),
    ("An entry of `gpus`", "GpuSettings"),
    ("`engines.NAME`", "EngineDescription"),
    ("`engines.NAME.sleep`", "SleepWays"),
    ("`engines.NAME.sleep.offload` and `.discard`", "SleepSettings"),
    ("A call of `leave` or `come_back`", "CallSettings"),
    ("`until`", "ConditionSettings"),
    ("`engines.NAME.busy`", "BusySettings"),
    ("`engines.NAME.inference_paths`", "PathSettings"),
    ("`engines.NAME.causes`", "CauseSettings"),
    ("`policy`", "PolicySettings"),
    ("`checkpoint`", "CheckpointSettings"),
    ("`checkpoint.object_store`", "ObjectStoreSettings"),
    ("`prefetch`", "PrefetchSettings"),
)
"""The sections in the order of the document, each with its definition in the schema."""

ABOUT = ("title", "description", "default", "deprecated")
"""Keywords that say nothing about the value."""
REFERENCE = {"type": "string", "pattern": "\\$\\{"}
"""A value from the environment, whatever it is there."""

MARK = "<!-- The rest is made by `make schema`; a test keeps it current. -->\n\n"


def json_schema() -> dict[str, Any]:
    """The schema, with 0.7.7's keys marked as deprecated: an editor must accept a file that the loader accepts."""
    schema = Settings.model_json_schema()
    definitions = schema["$defs"]
    _add_old_keys(schema, legacy.TOP)
    _add_old_keys(definitions["PolicySettings"], legacy.POLICY)
    _add_old_keys(definitions["ModelSettings"], legacy.MODEL)
    for key, why in legacy.WITHOUT_EFFECT.items():
        schema["properties"][key] = {"deprecated": True, "description": f"Has no effect: {why}."}
    for section in (schema, *definitions.values()):
        _accept_references(section, definitions)
        if "enum" in section:
            # An enum's docstring, which is for developers, and which compiled code does not have.
            del section["description"]
    schema["patternProperties"] = {f"^{ANCHOR_PREFIX}": {"description": "Ignored: a place for YAML's anchors."}}
    schema["title"] = "llmux configuration"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _accept_references(section: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Let every number, flag and choice also be written as a text with ``${NAME}`` in it."""
    for described in section.get("properties", {}).values():
        rule = {key: value for key, value in described.items() if key not in ABOUT}
        choices = rule.get("anyOf", [rule])
        if any(_needs_reference(choice, definitions) for choice in choices):
            for key in rule:
                del described[key]
            described["anyOf"] = [*choices, REFERENCE]


def _needs_reference(choice: dict[str, Any], definitions: dict[str, Any]) -> bool:
    choice = definitions.get(choice.get("$ref", "").rpartition("/")[2], choice)
    return "enum" in choice or choice.get("type") in ("integer", "number", "boolean")


def render() -> str:
    """The contents of ``config.schema.json``."""
    return json.dumps(json_schema(), indent=2) + "\n"


def _add_old_keys(section: dict[str, Any], old_keys: tuple[legacy.OldKey, ...]) -> None:
    properties = section["properties"]
    for key in old_keys:
        if key.new == "eviction":
            old: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 5}
        else:
            old = {"type": "number", "minimum": 0}
        unit = " in milliseconds" if key.divisor == 1000 else ""
        properties[key.old] = old | {"deprecated": True, "description": f"Old name of {key.new}{unit}."}


def update_reference(document: Path) -> None:
    """Rewrite the part of the document below its mark."""
    head, mark, _ = document.read_text().partition(MARK)
    document.write_text(head + mark + render_reference())


def render_reference() -> str:
    """Tables of all options that are not deprecated, in Markdown."""
    schema = json_schema()
    return "\n".join(
        line for title, name in TABLES for line in _table(title, schema if name is None else schema["$defs"][name])
    )


def _table(title: str, section: dict[str, Any]) -> Iterator[str]:
    required = set(section.get("required", ()))
    yield f"### {title}"
    yield ""
    yield "| key | default | |"
    yield "|---|---|---|"
    for key, described in section["properties"].items():
        if not described.get("deprecated"):
            default = "required" if key in required else _default(described)
            yield f"| `{key}` | {default} | {described.get('description', '')} |"
    yield ""


def _default(described: dict[str, Any]) -> str:
    default = described.get("default")
    match default:
        case None | [] | {}:
            return ""
        case {"weights": weights, "process": process}:
            return f"`{weights}+{process}`"
        case bool():
            return f"`{str(default).lower()}`"
        case _:
            return f"`{default}`"
