"""Rules for who may be on the GPUs together and who may make whom leave: pins, and the configured groups."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from llmux.core.model import Model


@dataclass(frozen=True, slots=True)
class Group:
    """Models with rules of their own for being on the GPUs."""

    models: tuple[str, ...]
    exclusive: bool = False
    """At most one of them is on the GPUs at a time."""
    persistent: bool = False
    """They leave for each other, but for no model outside the group."""
    together: bool = False
    """While one of them is used, the others come to the GPUs too, as far as there is room beside what is there."""


class Rules:
    """The rules for every model that uses GPUs. No rule concerns the others."""

    __slots__ = ("_companions", "_models", "_persistent", "_rivals", "are_any", "may_stay", "shut_out", "staying")

    def __init__(self, models: Iterable[Model], groups: Iterable[Group]) -> None:
        self._models = {model.name: model for model in models if model.spec.uses_gpu}
        self._rivals: dict[str, dict[str, None]] = {}
        self._persistent: dict[str, list[frozenset[str]]] = {}
        self._companions: dict[str, dict[str, None]] = {}
        for group in groups:
            members = [name for name in group.models if name in self._models]
            for name in members:
                others = dict.fromkeys(other for other in members if other != name)
                if group.exclusive and others:
                    self._rivals.setdefault(name, {}).update(others)
                if group.together:
                    self._companions.setdefault(name, {}).update(others)
                if group.persistent:
                    self._persistent.setdefault(name, []).append(frozenset(members))
        self.may_stay: tuple[Model, ...] = ()
        """Models that are pinned, or in persistent groups."""
        self._find_those_that_stay()
        self.shut_out: dict[str, str] = {}
        """Models that cannot be served at present, and the one beside which they cannot: it stays on the GPUs. Written
        by ``staying`` alone, as is the next."""
        self.staying: tuple[tuple[str, int, bool], ...] = ()
        """For what ``shut_out`` was found: who stays, where (the placement's identity), and whether it is pinned. Empty
        also where it is to be found anew."""

    def rivals(self, model: str) -> Collection[str]:
        """Those of which none is on the GPUs while the model is."""
        return self._rivals.get(model, ())

    def companions(self, model: str) -> Collection[str]:
        """Those that come to the GPUs while the model is used, in the order of the configuration's groups."""
        return self._companions.get(model, ())

    @property
    def has_companions(self) -> bool:
        """Whether any model has some."""
        return bool(self._companions)

    def is_persistent(self, model: str) -> bool:
        """Whether a group keeps it from leaving for others than its members."""
        return model in self._persistent

    def may_leave_for(self, model: Model, coming: Model) -> bool:
        """Whether neither a pin nor a group keeps a model on the GPUs for which another one needs them."""
        return not model.kept and all(coming.name in group for group in self._persistent.get(model.name, ()))

    def is_like_others(self, model: Model) -> bool:
        """Whether the same models would leave for it as for any other that needs the same memory."""
        return not (model.held or self.may_stay or model.name in self._rivals)

    def staying_beside(self, model: Model, others: Iterable[Model]) -> list[Model]:
        """Those of the others that do not leave for the model."""
        return [other for other in others if other is not model and not self.may_leave_for(other, model)]

    def keep(self, model: Model, *, kept: bool) -> None:
        """Pin a model to the GPUs, beside others, or end that."""
        model.kept = kept
        self._find_those_that_stay()

    def _find_those_that_stay(self) -> None:
        models = self._models.values()
        self.may_stay = tuple(model for model in models if model.kept or model.name in self._persistent)
        self.are_any = bool(self.may_stay or self._rivals)
        """Whether not all models that need the same memory are alike."""
