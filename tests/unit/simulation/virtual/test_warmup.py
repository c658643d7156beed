from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import GpuId
from llmux.core.policies.fifo import Fifo
from llmux.core.scheduler import Scheduler
from llmux.core.settings import Limits, ModelSpec
from llmux.core.states import Asleep, Cold
from llmux.simulation.virtual.costs import SwitchCost
from llmux.simulation.virtual.warmup import warm_up

ASLEEP = Eviction.parse("offload+keep_running")
IMAGE = Eviction.parse("discard+checkpoint")
COST = SwitchCost(evict=0.5, wake=1.5, cold=10.0)


def warmed(*specs: ModelSpec) -> Scheduler:
    scheduler = Scheduler(specs, Fifo(), Limits())
    warm_up(scheduler, {spec.name: COST for spec in specs})
    return scheduler


def test_every_model_ends_as_its_eviction_leaves_it() -> None:
    scheduler = warmed(ModelSpec("a", ASLEEP), ModelSpec("b", STOP), ModelSpec("c", ASLEEP, begins_asleep=IMAGE))
    assert [scheduler.state(name) for name in "abc"] == [Asleep(ASLEEP), Cold(), Asleep(IMAGE)]


def test_the_models_are_started_one_after_the_other_and_the_last_one_sleeps_at_0() -> None:
    scheduler = warmed(ModelSpec("a", ASLEEP), ModelSpec("b", ASLEEP))
    assert [transition.at for transition in scheduler.history("a")] == [-21.0, -11.0, -11.0, -11.0, -10.5]
    assert [transition.at for transition in scheduler.history("b")] == [-10.5, -0.5, -0.5, -0.5, 0.0]


def test_one_that_is_in_an_image_is_left_there() -> None:
    assert not warmed(ModelSpec("a", ASLEEP, begins_asleep=IMAGE)).history("a")


def test_a_sleeper_that_leaves_no_room_is_stopped_for_the_next_one() -> None:
    gpu = GpuId("local", "0")
    specs = [ModelSpec(name, ASLEEP, awake={gpu: 10}, asleep={ASLEEP: {gpu: 2}}) for name in "ab"]
    scheduler = Scheduler(specs, Fifo(), Limits(), {gpu: 10})
    warm_up(scheduler, dict.fromkeys("ab", COST))
    assert [scheduler.state(name) for name in "ab"] == [Cold(), Asleep(ASLEEP)]
