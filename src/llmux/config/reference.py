"""The table of options in the documentation, made from the schema so that it cannot be out of date."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmux.config.schema import json_schema

SECTIONS = (
    ("Top level", None),
    ("`models.NAME`", "ModelSettings"),
    ("`policy`", "PolicySettings"),
    ("`checkpoint`", "CheckpointSettings"),
    ("`checkpoint.object_store`", "ObjectStoreSettings"),
)


MARK = "<!-- The rest is made by `make reference`; a test keeps it current. -->\n\n"


def update(document: Path) -> None:
    """Write the tables into a document anew, after its mark."""
    head, mark, _ = document.read_text().partition(MARK)
    document.write_text(head + mark + render_reference())


def render_reference() -> str:
    """All options, in Markdown."""
    schema = json_schema()
    return "\n".join(line for title, name in SECTIONS for line in _table(title, _section(schema, name)))


def _section(schema: dict[str, Any], name: str | None) -> dict[str, Any]:
    section: dict[str, Any] = schema if name is None else schema["$defs"][name]
    return section


def _table(title: str, section: dict[str, Any]) -> Iterator[str]:
    required = set(section.get("required", ()))
    yield f"### {title}"
    yield ""
    yield "| key | default | |"
    yield "|---|---|---|"
    for key, described in section["properties"].items():
        if not described.get("deprecated"):
            yield f"| `{key}` | {_default(key, described, required)} | {described.get('description', '')} |"
    yield ""


def _default(key: str, described: dict[str, Any], required: set[str]) -> str:
    if key in required:
        return "required"
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
