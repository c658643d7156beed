"""The JSON schema of the configuration, for editors; the old keys of 0.7.7 are in it, marked as deprecated."""

import json
from typing import Any

from llmux.config import legacy
from llmux.config.settings import Settings


def json_schema() -> dict[str, Any]:
    """The schema as data."""
    schema = Settings.model_json_schema()
    definitions = schema["$defs"]
    _add_old_keys(schema, legacy.TOP)
    _add_old_keys(definitions["PolicySettings"], legacy.POLICY)
    _add_old_keys(definitions["ModelSettings"], legacy.MODEL)
    for key, why in legacy.WITHOUT_EFFECT.items():
        schema["properties"][key] = {"deprecated": True, "description": f"Has no effect: {why}."}
    schema["title"] = "llmux configuration"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def render() -> str:
    """The schema as the text of ``config.schema.json``."""
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
