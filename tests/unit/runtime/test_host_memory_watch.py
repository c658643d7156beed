"""What is done when the machine gets short of host memory; how much of it is available is the test's."""

from llmux.core.states import Asleep
from llmux.runtime.host_memory_watch import HostMemoryWatch
from tests.support.scripted import OFFLOAD, Runtime, model, scripted_runtime

RESERVE_MIB = 1000


def watch(runtime: Runtime, *available_mib: int) -> HostMemoryWatch:
    """One that finds so much at each look; at a further one the test fails."""
    found = iter(available_mib)
    return HostMemoryWatch(runtime.scheduler, runtime.controller, RESERVE_MIB, lambda: next(found))


def sleepers(runtime: Runtime) -> list[str]:
    return [record.name for record in runtime.scheduler.models if isinstance(record.state, Asleep)]


async def put_to_sleep(runtime: Runtime, name: str, host_mib: int | None) -> None:
    runtime.engines[name].host_mib = host_mib
    await runtime.operations.wake(name)
    await runtime.operations.sleep(name)
    assert runtime.scheduler.state(name) == Asleep(OFFLOAD)


async def test_sleepers_are_stopped_only_as_far_as_is_missing() -> None:
    async with scripted_runtime(model("a"), model("b")) as runtime:
        await put_to_sleep(runtime, "a", 600)
        await put_to_sleep(runtime, "b", 600)
        assert runtime.operations.model_status("a").host_mib == 600
        await watch(runtime, RESERVE_MIB).look()
        assert sleepers(runtime) == ["a", "b"]
        await watch(runtime, RESERVE_MIB - 500).look()
        assert sleepers(runtime) == ["b"]


async def test_it_does_not_look_while_nothing_is_held() -> None:
    async with scripted_runtime(model("a")) as runtime:
        await watch(runtime).look()
        await put_to_sleep(runtime, "a", None)
        await watch(runtime).look()
        await put_to_sleep(runtime, "a", 1)
        await runtime.operations.wake("a")
        await watch(runtime).look()
