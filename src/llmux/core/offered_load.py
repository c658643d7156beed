"""How much is asked of the GPUs, as a share of what they can do: above 1 queues grow, however requests are ordered.

Of each model the arrivals of the last minutes are multiplied by the time for which its engine was busy for each request
that ended, with as many in flight as there were. So the figure is what it says where there is much to do. Where there
is little, it is an upper bound, since fuller batches would do more.
"""

import math

from llmux.core.identifiers import GpuId, Seconds
from llmux.core.model import Model
from llmux.core.world import World

MEMORY_SECONDS: Seconds = 180.0
"""Time constant of the sums: three minutes, in which several models have had their turns."""
LEAST_KNOWN_SECONDS: Seconds = 60.0
"""Before as much time was seen, nothing is told."""
MEASURE_INTERVAL_SECONDS: Seconds = 1.0
SERVING_SHARE_MIN = 0.05
"""However much of the time switches take, so much is taken to be left for serving: nothing is divided by nothing."""


class _Sum:
    """A sum over the last minutes of something that is counted from the beginning."""

    __slots__ = ("_last", "recent")

    def __init__(self, total: float) -> None:
        self._last = total
        self.recent = 0.0

    def add(self, total: float, kept: float, share: float) -> None:
        """Fade what was seen before to ``kept``, and add ``share`` of what is new."""
        self.recent = kept * self.recent + share * (total - self._last)
        self._last = total


class _Use:
    """What one model takes of the time of a GPU that it has to itself."""

    __slots__ = ("arrivals", "busy", "ends", "moves")

    def __init__(self, model: Model, moved_seconds: Seconds, now: Seconds) -> None:
        times = model.estimates
        self.arrivals, self.ends = _Sum(times.asked), _Sum(times.ends)
        self.busy, self.moves = _Sum(times.busy_seconds_at(len(model.in_flight), now)), _Sum(moved_seconds)

    def add(self, model: Model, moved_seconds: Seconds, now: Seconds, kept: float, share: float) -> None:
        times = model.estimates
        self.arrivals.add(times.asked, kept, share)
        self.ends.add(times.ends, kept, share)
        self.busy.add(times.busy_seconds_at(len(model.in_flight), now), kept, share)
        self.moves.add(moved_seconds, kept, share)

    @property
    def work_seconds(self) -> Seconds:
        """How long its engine would be busy with all that has come."""
        return self.arrivals.recent * self.busy.recent / max(1.0, self.ends.recent)


class OfferedLoad:
    """Measured when somebody asks, and at most once a second."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._uses: dict[str, _Use] = {}
        self._seconds: Seconds = 0.0
        """The time over which the sums are, faded as they are."""
        self._measured_at: Seconds | None = None
        self._latest: float | None = None

    def measure(self, now: Seconds) -> float | None:
        """What is asked of the GPU of which most is asked, as a multiple of what it can do.

        None before enough was seen.
        """
        elapsed = math.inf if self._measured_at is None else now - self._measured_at
        if elapsed >= MEASURE_INTERVAL_SECONDS:
            self._add(0.0 if elapsed == math.inf else elapsed, now)
            self._measured_at = now
            self._latest = self._highest() if self._seconds >= LEAST_KNOWN_SECONDS else None
        return self._latest

    def _add(self, elapsed: Seconds, now: Seconds) -> None:
        kept = math.exp(-elapsed / MEMORY_SECONDS)
        # What came in a long time that nobody asked for counts as if it had come evenly.
        share = (1.0 - kept) * MEMORY_SECONDS / elapsed if elapsed > 0 else 1.0
        self._seconds = kept * self._seconds + share * elapsed
        world = self._world
        models = {name: model for name, model in world.models.items() if not model.spec.is_gpu_lease}
        for name in self._uses.keys() - models.keys():
            del self._uses[name]
        for name, model in models.items():
            moved_seconds = world.costs.moved_seconds(name)
            use = self._uses.get(name)
            if use is None:
                self._uses[name] = _Use(model, moved_seconds, now)
            else:
                use.add(model, moved_seconds, now, kept, share)

    def _highest(self) -> float:
        return max((self._of(gpu, size) for gpu, size in self._world.gpus.capacity.items()), default=0.0)

    def _of(self, gpu: GpuId, size: int) -> float:
        work = moves = 0.0
        for name, use in self._uses.items():
            need = self._world.models[name].awake.get(gpu, 0)
            if need > 0:
                # Of models of which three fit beside each other, each takes a third of the GPU's time.
                part = 1.0 / max(1, size // need)
                work += part * use.work_seconds
                moves += part * use.moves.recent
        return work / max(SERVING_SHARE_MIN * self._seconds, self._seconds - moves)
