"""Identifiers of instances and GPUs, and the units that go with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

Seconds = float
"""A duration, or a point on the caller's monotonic clock."""


@dataclass(frozen=True, slots=True, order=True)
class InstanceId:
    """One running engine of a model. Each cold start is a new generation, so that late outcomes are recognised."""

    model: str
    generation: int

    def __str__(self) -> str:
        return f"{self.model}#{self.generation}"


class GpuId(NamedTuple):
    """One GPU of one host. A tuple because it is a key that every decision looks up many times."""

    host: str
    uuid: str


VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
"""The variable that says which GPUs a process sees, by their numbers or UUIDs."""

Footprint = Mapping[GpuId, int]
"""Memory held on each GPU, in MiB."""

EVERY_GPU = GpuId("local", "all")
"""Stands for all GPUs together, while the configuration declares no sizes."""

NOTHING: Footprint = {}

ALL_OF_IT: Footprint = {EVERY_GPU: 1}
"""The footprint of a model that declares none: all of every GPU."""
