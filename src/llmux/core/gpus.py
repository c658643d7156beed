"""The GPUs' memory: how much there is, what is free, and which models hold some."""

from collections.abc import Iterable

from llmux.core.identifiers import Footprint, GpuId
from llmux.core.known_plans import KnownPlans
from llmux.core.model import Model
from llmux.core.placement import free_memory, give, take
from llmux.core.states import ON_GPU, Asleep


class Gpus:
    """What models hold of each GPU. ``World`` keeps it true, whenever a model's state or its need changes."""

    __slots__ = (
        "capacity",
        "expected",
        "free",
        "known_plans",
        "least_need",
        "models_on",
        "residues_on",
        "with_residue",
    )

    def __init__(self, capacity: Footprint, models: Iterable[Model]) -> None:
        models = tuple(models)
        self.capacity = dict(capacity)
        """Memory of each GPU, in MiB."""
        self.free = free_memory(capacity, [model.held for model in models])
        """``capacity`` less what is held; negative only where that is more than was thought."""
        self.expected = dict(self.free)
        """What will be free when all that is leaving has left."""
        self.least_need: dict[GpuId, int] = {}
        """The least that any model needs of each GPU, in MiB; without those GPUs that none can be on."""
        self.with_residue: dict[str, Model] = {}
        """Sleeping models that still hold GPU memory, which stopping them would free."""
        self.models_on: dict[GpuId, dict[str, Model]] = {gpu: {} for gpu in capacity}
        """``World.on_gpu`` for each GPU."""
        self.residues_on: dict[GpuId, dict[str, Model]] = {gpu: {} for gpu in capacity}
        """``with_residue`` for each GPU."""
        self.known_plans = KnownPlans(capacity)
        self.find_least_need(models)

    def hold(self, model: Model) -> None:
        """A model's state or its need has changed: take over what it holds now."""
        held, footprint, name = model.held, model.footprint(model.state), model.name
        self.known_plans.changed(held)
        if footprint is not held:
            self.known_plans.changed(footprint)
            give(self.free, held)
            take(self.free, footprint)
            model.held = footprint
        remainder = model.remainder(model.state)
        if remainder is not model.will_hold:
            self.known_plans.changed(model.will_hold)
            self.known_plans.changed(remainder)
            give(self.expected, model.will_hold)
            take(self.expected, remainder)
            model.will_hold = remainder
        for gpu in held:
            self.residues_on[gpu].pop(name, None)
        if isinstance(model.state, Asleep) and footprint:
            self.with_residue[name] = model
            for gpu in footprint:
                self.residues_on[gpu][name] = model
        else:
            self.with_residue.pop(name, None)
        is_there = isinstance(model.state, ON_GPU)
        for gpu in model.awake:
            if is_there:
                self.models_on[gpu][name] = model
            else:
                self.models_on[gpu].pop(name, None)

    def find_least_need(self, models: Iterable[Model]) -> None:
        """Look at what every model needs, after one has come, gone, or turned out to need another amount."""
        least: dict[GpuId, int] = {}
        for model in models:
            for placement in model.places:
                for gpu, size in placement.awake.items():
                    least[gpu] = min(size, least.get(gpu, size))
        self.least_need = least
