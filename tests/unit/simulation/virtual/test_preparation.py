from collections.abc import Sequence

from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import GpuId
from llmux.core.policies.fifo import Fifo
from llmux.core.scheduler import Scheduler
from llmux.core.settings import Limits, ModelSpec, Placement
from llmux.core.states import Asleep, Cold, Serving
from llmux.simulation.virtual.costs import SwitchCost
from llmux.simulation.virtual.preparation import Preparation, prepare

ASLEEP = Eviction.parse("offload+keep_running")
IMAGE = Eviction.parse("discard+checkpoint")
COST = SwitchCost(evict=0.5, wake=1.5, cold=10.0)
FIRST, SECOND = GpuId("local", "0"), GpuId("local", "1")


def warmed(*specs: ModelSpec) -> Scheduler:
    scheduler = Scheduler(specs, Fifo(), Limits())
    prepare(scheduler, {spec.name: COST for spec in specs}, Preparation(warms_up=True))
    return scheduler


def test_after_the_warm_up_every_model_is_as_its_eviction_leaves_it() -> None:
    scheduler = warmed(ModelSpec("a", ASLEEP), ModelSpec("b", STOP), ModelSpec("c", ASLEEP, begins_asleep=IMAGE))
    assert [scheduler.state(name) for name in "abc"] == [Asleep(ASLEEP), Cold(), Asleep(IMAGE)]


def test_the_warm_up_starts_one_model_after_the_other_and_ends_at_0() -> None:
    scheduler = warmed(ModelSpec("a", ASLEEP), ModelSpec("b", ASLEEP))
    assert [transition.at for transition in scheduler.history("a")] == [-21.0, -11.0, -11.0, -11.0, -10.5]
    assert [transition.at for transition in scheduler.history("b")] == [-10.5, -0.5, -0.5, -0.5, 0.0]


def test_the_warm_up_leaves_a_model_in_its_image() -> None:
    assert not warmed(ModelSpec("a", ASLEEP, begins_asleep=IMAGE)).history("a")


def test_the_warm_up_stops_a_sleeping_model_in_the_way_of_the_next_one() -> None:
    gpu = GpuId("local", "0")
    specs = [ModelSpec(name, ASLEEP, placements=(Placement({gpu: 10}, {ASLEEP: {gpu: 2}}),)) for name in "ab"]
    scheduler = Scheduler(specs, Fifo(), Limits(), {gpu: 10})
    prepare(scheduler, dict.fromkeys("ab", COST), Preparation(warms_up=True))
    assert [scheduler.state(name) for name in "ab"] == [Cold(), Asleep(ASLEEP)]


def preloaded(groups: Sequence[Sequence[str]], *specs: ModelSpec, warms_up: bool = False) -> Scheduler:
    scheduler = Scheduler(specs, Fifo(), Limits(), {FIRST: 10, SECOND: 10})
    prepare(scheduler, {spec.name: COST for spec in specs}, Preparation(warms_up, groups))
    return scheduler


def on(gpu: GpuId, name: str, size: int = 5, **more: Eviction) -> ModelSpec:
    return ModelSpec(name, ASLEEP, placements=(Placement({gpu: size}),), **more)


def test_models_of_a_group_are_preloaded_at_the_same_time_and_groups_one_after_the_other() -> None:
    scheduler = preloaded((("a", "b"), ("c",)), on(FIRST, "a"), on(SECOND, "b"), on(FIRST, "c"))
    times = {name: [transition.at for transition in scheduler.history(name)] for name in "abc"}
    assert times == {"a": [-20.0, -10.0], "b": [-20.0, -10.0], "c": [-10.0, 0.0]}
    assert all(isinstance(scheduler.state(name), Serving) for name in "abc")


def test_what_is_preloaded_is_not_warmed_up_and_comes_after_the_others() -> None:
    scheduler = preloaded((("a",),), on(FIRST, "a"), on(FIRST, "b"), warms_up=True)
    assert [transition.at for transition in scheduler.history("a")] == [-10.0, 0.0]
    assert [transition.at for transition in scheduler.history("b")][-1] == -10.0
    assert [type(scheduler.state(name)) for name in "ab"] == [Serving, Asleep]


def test_a_model_in_an_image_is_woken_from_it() -> None:
    scheduler = preloaded((("a",),), on(FIRST, "a", begins_asleep=IMAGE))
    assert [transition.at for transition in scheduler.history("a")] == [-1.5, 0.0]
