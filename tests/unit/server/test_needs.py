"""What is made of what engines were seen to hold."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from llmux.config.settings import Settings
from llmux.core.eviction import Eviction
from llmux.core.identifiers import GpuId
from llmux.core.need import Need, NeedSource, SeenNeed
from llmux.gpus.remembered import NeedStore
from llmux.instances.outcomes import SeenMemory
from llmux.server.build import build_needs, engine_specs, remembered_needs
from llmux.server.needs import Needs

SMALL, LARGE = GpuId("local", "0"), GpuId("local", "1")
GPUS = {SMALL: 1000, LARGE: 4000}
OFFLOAD = Eviction.parse("offload+keep_running")
SGLANG = {"engine": "sglang", "model_path": "x"}


@dataclass
class Case:
    needs: Needs
    fingerprint: str
    spawned: list[Coroutine[Any, Any, None]]

    def see(self, mib: int, gpu: GpuId = SMALL, **more: Any) -> list[dict[str, int]] | None:
        """Where the model may be, after its engine was seen to hold so much; None if that has not changed."""
        eviction, has_answered = more.pop("eviction", None), more.pop("has_answered", False)
        seen = SeenMemory(more.pop("fingerprint", self.fingerprint), mib, **more)
        places = self.needs.engine_seen("m", seen, [gpu], eviction, has_answered=has_answered)
        return None if places is None else [{gpu.uuid: size for gpu, size in place.awake.items()} for place in places]

    def need(self, gpu: GpuId = SMALL) -> Need:
        return self.needs.need_of("m", gpu)

    async def written(self) -> None:
        for work in self.spawned:
            await work
        self.spawned.clear()


Make = Callable[..., Case]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def made(model: Mapping[str, Any] = SGLANG, gpu_models: str = "H100") -> Case:
        settings = Settings.model_validate(
            {"models": {"m": dict(model)}, "gpus": [{"memory": mib << 20} for mib in GPUS.values()]}
        )
        specs, spawned = engine_specs(settings), list[Coroutine[Any, Any, None]]()
        needs = Needs(settings, specs, GPUS, NeedStore(tmp_path), gpu_models, spawned.append)
        return Case(needs, specs["m"].fingerprint(), spawned)

    return made


async def test_what_is_not_known_is_measured_and_remembered(make: Make) -> None:
    case = make()
    assert case.need() == Need(1000, NeedSource.UNKNOWN)
    assert case.see(400) == [{"0": 420}, {"1": 420}]
    assert case.need(LARGE) == Need(420, NeedSource.MEASURED)
    await case.written()
    assert make().need() == Need(420, NeedSource.MEASURED)


async def test_simulations_find_what_a_server_on_the_same_gpus_remembered(tmp_path: Path) -> None:
    """That it is looked up under the key by which a server writes it."""
    gpus = [{"memory": mib << 20} for mib in GPUS.values()]
    settings = Settings.model_validate({"models": {"m": SGLANG}, "gpus": gpus, "cache_dir": str(tmp_path)})
    assert remembered_needs(settings) == {"m": SeenNeed()}
    spawned: list[Coroutine[Any, Any, None]] = []
    needs = build_needs(settings, specs := engine_specs(settings), GPUS, spawned.append)
    assert needs is not None
    needs.engine_seen("m", SeenMemory(specs["m"].fingerprint(), 400, residue_mib=30), [SMALL], OFFLOAD)
    for work in spawned:
        await work
    assert remembered_needs(settings) == {"m": SeenNeed(400, {OFFLOAD: 30})} == dict(needs.seen)
    assert remembered_needs(settings.model_copy(update={"gpus": ()})) == {}, "not placed by memory"


async def test_it_is_forgotten_with_other_arguments_environment_or_gpus(make: Make) -> None:
    case = make()
    case.see(400)
    await case.written()
    unknown = Need(1000, NeedSource.UNKNOWN)
    assert make({**SGLANG, "extra_args": ["--context-length", "64"]}).need() == unknown
    assert make({**SGLANG, "env": {"X": "1"}}).need() == unknown
    assert make(gpu_models="H200").need() == unknown


async def test_the_most_that_was_seen_counts_and_small_changes_change_nothing(make: Make) -> None:
    case = make()
    case.see(400)
    assert case.see(410) is None, "within what is added for growth"
    assert case.see(300) is None
    assert case.see(430) == [{"0": 451}, {"1": 451}]
    await case.written()


async def test_a_gpu_that_turns_out_to_be_too_small_is_left_out(make: Make) -> None:
    case = make()
    assert case.see(2000, LARGE) == [{"0": 1000}, {"1": 2100}]
    await case.written()


async def test_a_declared_need_is_corrected_only_upwards_and_once(make: Make) -> None:
    case = make({**SGLANG, "gpu_memory": "500MiB"})
    with capture_logs() as logs:
        assert case.see(400) is None
        assert case.see(500) is None
        assert case.see(600) == [{"0": 606}, {"1": 606}]
        assert case.see(605) is None
    assert [(entry["gpu_memory_mib"], entry["seen_mib"]) for entry in logs if entry["log_level"] == "warning"] == [
        (500, 600)
    ]
    assert case.need() == Need(606, NeedSource.MEASURED, 500)
    await case.written()


async def test_more_than_its_share_of_the_gpu_where_it_is(make: Make) -> None:
    case = make({**SGLANG, "extra_args": ["--mem-fraction-static", "0.5"]})
    assert case.see(1900, LARGE) is None, "half of it are 2000"
    assert case.see(2200, LARGE) == [{"0": 1000}, {"1": 2222}]
    await case.written()


async def test_what_may_be_others_memory_corrects_nothing(make: Make) -> None:
    """Without the processes' own amounts only an engine that is alone on its GPU can be measured."""
    case = make({**SGLANG, "gpu_memory": "500MiB"})
    assert case.see(900, is_told=False) is None
    alone = make()
    assert alone.see(400, is_told=False) == [{"0": 420}, {"1": 420}]
    assert alone.see(900, is_told=False) is None, "it may have had company"
    await alone.written()


async def test_an_engine_that_may_load_later_is_measured_when_it_has_answered(make: Make) -> None:
    case = make({"engine": "speaches", "model_path": "x"})
    assert case.see(400, has_answered=False) is None
    assert case.see(400, has_answered=True) is not None
    await case.written()


async def test_files_that_changed_since_the_start_make_another_model(make: Make) -> None:
    case = make()
    case.see(400)
    await case.written()
    assert case.see(200, fingerprint="others") == [{"0": 210}, {"1": 210}]
    await case.written()
    assert make().need() == Need(420, NeedSource.MEASURED), "what was seen of the first is kept for it"


async def test_what_it_keeps_asleep_is_what_was_seen_last(make: Make) -> None:
    case = make({**SGLANG, "gpu_memory": "500MiB"})
    seen = SeenMemory(case.fingerprint, 400, residue_mib=60)
    (first, _) = case.needs.engine_seen("m", seen, [SMALL], OFFLOAD) or ()
    assert first.asleep == {OFFLOAD: {SMALL: 60}}
    await case.written()
    again = make({**SGLANG, "gpu_memory": "500MiB"})
    assert again.needs.seen["m"] == SeenNeed(0, {OFFLOAD: 60})
    assert again.needs.engine_seen("m", seen, [SMALL], OFFLOAD) is None
    (first, _) = again.needs.engine_seen("m", SeenMemory(case.fingerprint, 400, 900), [SMALL], OFFLOAD) or ()
    assert first.asleep == {OFFLOAD: {SMALL: 500}}, "no more than awake"
    await again.written()


async def test_writes_follow_each_other(make: Make) -> None:
    case = make()
    case.see(400)
    case.see(700)
    async with asyncio.timeout(5):
        await asyncio.gather(*case.spawned)
    assert make().need() == Need(735, NeedSource.MEASURED)
