"""A GPU lease: GPU memory that another program than an engine of ours may use for a while."""

from collections.abc import Mapping

from llmux.core.eviction import STOP
from llmux.core.identifiers import EVERY_GPU, GpuId, Seconds
from llmux.core.placement import gpu_sets
from llmux.core.request import Request
from llmux.core.settings import ALL_OF_EVERY_GPU, ModelSpec, Placement


class GpuLease(Request):
    """A program's request for GPU memory, and its hold on it.

    To the scheduler it is the only request for a model of its own, which ``leasing`` adds and removes: it waits as a
    request does, and is in flight while the program has the memory. Its model is overdue as soon as it waits, so that
    it goes before all that are not overdue, and behind those that are already.
    """

    __slots__ = ("placements",)

    def __init__(
        self, number: int, placements: tuple[Placement, ...], *, timeout_seconds: Seconds = float("inf")
    ) -> None:
        """``timeout_seconds``: how long it waits at most."""
        super().__init__(number, name_of(number), timeout_seconds=timeout_seconds)
        self.placements = placements
        """Where the memory may be, at least one place."""

    @property
    def spec(self) -> ModelSpec:
        """The model that stands for it. No name of it is known to clients."""
        return ModelSpec(
            self.model,
            STOP,
            max_in_flight=1,
            placements=self.placements,
            max_wait_seconds=0.0,
            idle_seconds=0.0,
            is_gpu_lease=True,
        )


def name_of(number: int) -> str:
    """What a GPU lease is called in logs and in the status."""
    return f"GPU lease {number}"


def lease_placements(capacity: Mapping[GpuId, int], memory_mib: int | None, count: int) -> tuple[Placement, ...]:
    """Where so much memory of each of so many GPUs may be; empty if there are not as many that have it.

    Without an amount it is all of these GPUs, and where models are not placed by memory, all of every GPU.
    """
    if EVERY_GPU in capacity:
        return (ALL_OF_EVERY_GPU,)
    needs = {gpu: total if memory_mib is None else memory_mib for gpu, total in capacity.items()}
    large_enough = [gpu for gpu, total in capacity.items() if needs[gpu] <= total]
    if count > len(large_enough):
        return ()
    return tuple(Placement({gpu: needs[gpu] for gpu in chosen}) for chosen in gpu_sets(large_enough, count))
