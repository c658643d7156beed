"""What the engines of the configured models take: each kind has its own paths, and some must not get every field."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmux.engines.paths import COMMON_ENDPOINTS, JSON, Endpoint, MediaType, RequestRules
from llmux.gateway import endpoints
from llmux.gateway.removed_fields import RemovedFields


@dataclass(frozen=True, slots=True)
class EngineRules:
    """The kind of one model's engine, and its rules."""

    kind: str
    rules: RequestRules


@dataclass(frozen=True, slots=True)
class EngineGroup:
    """The models whose engines take the same."""

    kind: str
    endpoints: Mapping[str, Endpoint]
    removed: RemovedFields | None
    """The fields of bodies that these engines must not get."""
    forwards_pages: bool = False
    """Whether these engines have pages for people beside their endpoints."""

    def find(self, path: str) -> tuple[str, Endpoint] | None:
        """The path by which these engines know ``path``, which may be written without /v1, and what they take there."""
        for known in (path, f"/v1{path}"):
            endpoint = self.endpoints.get(known) or endpoints.with_identifier(known)
            if endpoint is not None:
                return known, endpoint
        return None


class EnginePaths:
    """The paths of all configured models' engines, by groups of models that do not differ in them."""

    def __init__(self, engines: Mapping[str, EngineRules], inference_paths: Iterable[str]) -> None:
        """``engines`` are by model; a model that is not among them may have any path."""
        distinct: list[EngineRules] = []
        self.group_of: dict[str, int] = {}
        """Which of ``groups`` a model is in."""
        for model, rules in engines.items():
            if rules not in distinct:
                distinct.append(rules)
            self.group_of[model] = distinct.index(rules)
        further = endpoints.with_further(inference_paths, {})
        every = further | _union(distinct)
        self.known = frozenset(every)
        """All paths that an engine has."""
        self.groups: Sequence[EngineGroup] = [
            EngineGroup(
                one.kind,
                further | dict(one.rules.endpoints) if one.rules.endpoints else every,
                RemovedFields(one.rules.removed_fields) if one.rules.removed_fields else None,
                one.rules.forwards_pages,
            )
            for one in distinct
        ] or [EngineGroup("", every, None)]

    def has_pages(self, model: str) -> bool:
        """Whether a model's engine has pages for people."""
        group = self.group_of.get(model)
        return group is not None and self.groups[group].forwards_pages

    @property
    def removed(self) -> frozenset[str]:
        """The names of all fields that some engine must not get, as ``RemovedFields`` has them."""
        return frozenset().union(*(group.removed.names for group in self.groups if group.removed is not None))

    def models_in(self, groups: Iterable[int]) -> Iterator[str]:
        """The models in any of these groups."""
        wanted = frozenset(groups)
        return (model for model, group in self.group_of.items() if group in wanted)


def _union(engines: Sequence[EngineRules]) -> dict[str, Endpoint]:
    tables = [one.rules.endpoints for one in engines]
    # Of an engine that lists none nothing is known, but most have the common ones.
    tables = [table or COMMON_ENDPOINTS for table in tables] or [COMMON_ENDPOINTS]
    paths = dict.fromkeys(path for table in tables for path in table)
    return {path: merged([table[path] for table in tables if path in table]) for path in paths}


def merged(variants: Sequence[Endpoint]) -> Endpoint:
    """What any of the engines takes at a path."""
    first = variants[0]
    if all(one == first for one in variants):
        return first
    media_types = frozenset[MediaType]().union(*(one.media_types for one in variants))
    return Endpoint(
        first.path,
        tuple(dict.fromkeys(method for one in variants for method in one.methods)),
        JSON if media_types == JSON else media_types,
        model_in_body=any(one.model_in_body for one in variants),
        may_wake=any(one.may_wake for one in variants),
    )
