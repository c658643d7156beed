"""Keys of llmux up to 0.7.7, translated into today's: milliseconds and ``_secs`` become ``_seconds``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmux.config.fields import as_scalar
from llmux.config.position import Path
from llmux.config.problems import dotted
from llmux.errors import Problem


@dataclass(frozen=True, slots=True)
class OldKey:
    """An old key, its name today, and the number of old units in one of today's."""

    old: str
    new: str
    divisor: int = 1


TOP = (OldKey("startup_timeout_secs", "start_timeout_seconds"),)
POLICY = (
    OldKey("request_timeout_secs", "request_timeout_seconds"),
    OldKey("min_active_secs", "min_active_seconds"),
    OldKey("coalesce_window_ms", "coalesce_window_seconds", 1000),
    OldKey("max_wait_secs", "max_wait_seconds"),
    OldKey("tick_interval_ms", "tick_interval_seconds", 1000),
    OldKey("min_quantum_ms", "min_quantum_seconds", 1000),
    OldKey("sleep_level", "eviction"),
)
MODEL = (OldKey("sleep_level", "eviction"),)
WITHOUT_EFFECT = {"max_sleeping": "llmux keeps as many models asleep as the machine has room for"}
"""Top-level keys that are accepted and ignored, and why."""


@dataclass(slots=True)
class Translation:
    """The data with today's keys. ``written`` maps a path of today to the old key in the file, for messages."""

    data: dict[str, Any]
    written: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def translate(data: Mapping[str, Any]) -> Translation:
    """Rename old keys. Where a mapping is expected and something else is found, the validation reports it later."""
    result = Translation({})
    top = _renamed(data, TOP, (), result)
    for key, why in WITHOUT_EFFECT.items():
        if key in top:
            del top[key]
            result.warnings.append(Problem(key, f"has no effect: {why}", "remove it"))
    policy, models = top.get("policy"), top.get("models")
    if isinstance(policy, Mapping):
        if quantum := next((key for key in ("min_quantum_seconds", "min_quantum_ms") if key in policy), None):
            result.warnings.append(
                Problem(f"policy.{quantum}", "has no effect", "remove it; min_active_seconds does what it promised")
            )
        top["policy"] = _renamed(policy, POLICY, ("policy",), result)
    if isinstance(models, Mapping):
        top["models"] = {
            name: _renamed(model, MODEL, ("models", name), result) if isinstance(model, Mapping) else model
            for name, model in models.items()
        }
    result.data = top
    return result


def _renamed(
    section: Mapping[str, Any], old_keys: tuple[OldKey, ...], path: Path, result: Translation
) -> dict[str, Any]:
    by_old = {key.old: key for key in old_keys}
    renamed: dict[str, Any] = {}
    for key, value in section.items():
        old = by_old.get(key)
        if old is None:
            renamed[key] = value
        elif old.new in section:
            result.problems.append(
                Problem(dotted((*path, key)), f"given together with {old.new}", f"keep {old.new} only")
            )
        else:
            renamed[old.new] = _converted(value, old.divisor)
            result.written[(*path, old.new)] = key
    return renamed


def _converted(value: object, divisor: int) -> object:
    if divisor == 1:
        return value
    number = as_scalar(value)
    return value if isinstance(number, bool) or not isinstance(number, int | float) else number / divisor
