"""What placement by memory promises, shown on real servers over simulated engines and virtual GPUs.

three-of-four: four models of which three fit on a GPU, asked one after the other. No model leaves while there is room,
and the switches are counted beside the fewest that the same requests need if all are known beforehand.

two-gpus: two models on each of two GPUs, one fits on each, asked in turn. Every switch is one that memory forces, and
those on one GPU happen while those on the other do.

foreign-program: a program that is not ours takes GPU memory that gpu_memory_reserve keeps for such, while one model
sleeps and another one is busy. It is measured how soon the sleeper gives up what it still holds. The busy one stays.

large-and-small: one model that takes most of both GPUs, and four small ones, under load. No more memory is ever asked
for than is free, every answer is right, and every wait is within the bound that docs/scheduling.md states.

    python bench/placement/run.py [RUN ...] [--minutes 10] [--policy NAME] [--check]
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.placement.optimum import fewest_switches
from llmux.config.load import loads
from llmux.core.identifiers import Seconds
from llmux.server.build import build_scheduler
from llmux.simulation.client import Expectation, LoadGenerator
from llmux.simulation.demo.answers import right_answer
from llmux.simulation.ledger import Ledger
from llmux.simulation.replay import parse_switches
from llmux.simulation.traffic import Ending, RequestKind, TrafficRequest
from tests.support.bench import Bench, eventually
from tests.support.pressure import machine, program
from tests.support.server import LlmuxProcess
from tests.support.several_gpus import gpus, model

GPU_MIB = 1000
RESIDUE_MIB = 20
QUICK = ("--sim-residue", str(RESIDUE_MIB), "--sim-sleep-ms", "50", "--sim-wake-ms", "100")
SLOW = ("--sim-residue", str(RESIDUE_MIB), "--sim-sleep-ms", "200", "--sim-wake-ms", "400")
TIMES_OPTIMUM = 1.5
"""Who knows only the past brings models back more often; the best rules for that, up to this much on such requests."""
OVERLAPPING = 0.5
"""The share of one GPU's switches during which there is one on the other; without independence there is none."""
REQUESTS_PER_SECOND = {"large": 0.2, "small-1": 0.8, "small-2": 0.6, "small-3": 0.4, "small-4": 0.2}
OUTPUT_TOKENS = (8, 48)
LEAVES_WITHIN_SECONDS = 2.0
LOOK_SECONDS = 0.01
MAX_WAIT_SECONDS, DRAIN_SECONDS = 4.0, 2.0
CLIENTS_MAX = 500
CLIENT_SECONDS = 120.0


@dataclass(slots=True)
class Outcome:
    """The figures of a run, and the bars that it missed."""

    figures: dict[str, Any]
    missed: list[str] = field(default_factory=list)

    def require(self, holds: bool, bar: str) -> None:
        """Note a bar that does not hold."""
        if not holds:
            self.missed.append(bar)


def sleeping(mib: int, flags: Sequence[str], **more: Any) -> dict[str, Any]:
    """A model's settings. Its engine takes this much while it is awake, and sleeps while it is off the GPU."""
    return model(mib, eviction="offload+keep_running", extra_args=list(flags), **more)


async def switches_of(bench: Bench) -> int:
    """How many there have been."""
    return parse_switches((await bench.call("GET /metrics")).text).by_model.total()


async def three_of_four(requests: int) -> Outcome:
    """Four models of which three fit; requests that come back to the same few for a while."""
    sizes = dict.fromkeys("abcd", 300)
    wanted = list(_with_habits(list(sizes), requests, random.Random(7)))
    early = 0
    with tempfile.TemporaryDirectory() as directory:
        async with gpus(Path(directory), {name: sleeping(mib, QUICK) for name, mib in sizes.items()}, GPU_MIB) as bench:
            for number, name in enumerate(wanted, 1):
                await bench.expect(name, f"question {number}")
                there = (await bench.status())["resident"]
                early += len(there) < min(3, len(set(wanted[:number])))
            switches = await switches_of(bench)
    fewest = fewest_switches(wanted, sizes, GPU_MIB - RESIDUE_MIB)
    found = Outcome({"requests": requests, "switches": switches, "fewest": fewest, "left_early": early})
    found.require(early == 0, "a model left while there was room for it")
    found.require(switches <= fewest * TIMES_OPTIMUM, f"more than {TIMES_OPTIMUM} times the fewest switches")
    return found


def _with_habits(models: list[str], count: int, chance: random.Random) -> Iterator[str]:
    """Mostly models that were asked for lately."""
    latest: list[str] = []
    for _ in range(count):
        name = chance.choice(latest if latest and chance.random() < 0.8 else models)
        latest = [name, *(one for one in latest if one != name)][:3]
        yield name


async def two_gpus(rounds: int) -> Outcome:
    """Two models on each GPU, asked in turn by a client for each GPU."""
    on_gpu = {0: ("a", "b"), 1: ("c", "d")}
    models = {name: sleeping(900, SLOW, gpus=[gpu]) for gpu, names in on_gpu.items() for name in names}
    with tempfile.TemporaryDirectory() as directory:
        async with gpus(Path(directory), models, GPU_MIB, GPU_MIB) as bench:

            async def client(names: tuple[str, ...]) -> None:
                for number in range(rounds):
                    for name in names:
                        await bench.expect(name, f"round {number}")

            # The starts, which take as long as the machine is busy, are not part of what is compared.
            for names in on_gpu.values():
                for name in names:
                    await bench.expect(name)
            started = await switches_of(bench)
            async with asyncio.TaskGroup() as clients:
                for names in on_gpu.values():
                    clients.create_task(client(names))
            switches = await switches_of(bench) - started
            switching = [await _spans_of_switches(bench, names) for names in on_gpu.values()]
    pairs = [(one, other) for one in switching[0] for other in switching[1] if overlap(one, other) > 0]
    share = len({one for one, _ in pairs}) / len(switching[0])
    found = Outcome(
        {
            "requests": 2 * 2 * rounds,
            "switches": switches,
            "forced": 2 * 2 * rounds,
            "overlapping_share": round(share, 2),
            "seconds_at_once": round(sum(overlap(one, other) for one, other in pairs), 2),
        }
    )
    found.require(switches == 2 * 2 * rounds, "not as many switches as memory forces")
    found.require(share >= OVERLAPPING, f"less than {OVERLAPPING:.0%} of the switches were during one of the other GPU")
    return found


Span = tuple[Seconds, Seconds]


async def _spans_of_switches(bench: Bench, names: Sequence[str]) -> list[Span]:
    """When a GPU's models were on their way off it or onto it, as their latest transitions say."""
    spans: list[Span] = []
    for name in names:
        now = time.monotonic()
        story = (await bench.call(f"GET /control/models/{name}/story")).document["story"]
        spans += [
            (now - one["seconds_ago"], now - following["seconds_ago"])
            for one, following in pairwise(story)
            if one["after"]["state"] in ("waking", "evicting")
        ]
    return sorted(spans)


def overlap(one: Span, other: Span) -> Seconds:
    """How long both last."""
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))


def switch_seconds(server: LlmuxProcess) -> list[Seconds]:
    """What each switch took without its drain, as the log says."""
    found = server.find_in_log(r"switched .*sleep_seconds=(\S+) wake_seconds=(\S+)")
    return [float(one[1]) + float(one[2]) for one in found]


async def large_and_small(minutes: float, policy: str) -> Outcome:
    """One model over both GPUs and four small ones, under load."""
    models = {name: sleeping(300, SLOW) for name in REQUESTS_PER_SECOND} | {"large": sleeping(850, SLOW, gpus=2)}
    limits = {
        "policy": {"policy_type": policy, "max_wait_seconds": MAX_WAIT_SECONDS, "min_active_seconds": 0.5},
        "drain_timeout_seconds": DRAIN_SECONDS,
    }
    load = LoadGenerator(
        traffic(minutes * 60, random.Random(11)),
        clients_max=CLIENTS_MAX,
        expected=Expectation(right_answer),
        time_limit_seconds=CLIENT_SECONDS,
    )
    with tempfile.TemporaryDirectory() as directory:
        async with gpus(Path(directory), models, GPU_MIB, GPU_MIB, **limits) as bench:
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(bench.server.url, connector=connector) as session:
                await load.run(session)
            switches = await switches_of(bench)
            await eventually(lambda: len(switch_seconds(bench.server)) >= switches, "the log of the last switch")
            longest = max(switch_seconds(bench.server))
            settings = loads((Path(directory) / "config.json").read_text()).settings
        books = [Ledger(Path(directory) / f"gpu-{number}.json").snapshot() for number in range(2)]
    bound = build_scheduler(settings).wait_bound(longest) + longest
    waits = {name: _longest_wait(load, name) for name in models}
    lost = [outcome.problem for outcome in load.outcomes if outcome.ending is not Ending.ANSWERED]
    found = Outcome(
        {
            "minutes": minutes,
            "policy": policy,
            "requests": len(load.outcomes),
            "switches": switches,
            "longest_switch_seconds": round(longest, 2),
            "longest_wait_seconds": waits,
            "bound_seconds": round(bound, 2),
            "refused_by_ledger": sum(len(book.refused) for book in books),
            "peak_mib": [book.peak_mib for book in books],
            "lost": len(lost),
            "first_problems": lost[:3],
        }
    )
    found.require(not lost, "requests were lost")
    found.require(max(waits.values()) <= bound, "a wait exceeded the bound")
    found.require(found.figures["refused_by_ledger"] == 0, "more memory was asked for than was free")
    return found


def traffic(seconds: float, chance: random.Random) -> Iterator[TrafficRequest]:
    """Requests at random times, in order of arrival, each with a question of its own."""
    at, number = 0.0, 0
    while (at := at + chance.expovariate(sum(REQUESTS_PER_SECOND.values()))) < seconds:
        number += 1
        name = chance.choices(list(REQUESTS_PER_SECOND), list(REQUESTS_PER_SECOND.values()))[0]
        prompt = f"question {number}"
        yield TrafficRequest(at, name, 2, chance.randint(*OUTPUT_TOKENS), RequestKind.CHAT_STREAM, prompt)


def _longest_wait(load: LoadGenerator, name: str) -> float:
    waits = [outcome.wait_seconds or 0.0 for outcome in load.outcomes if outcome.request.model == name]
    return round(max(waits, default=0.0), 2)


async def foreign_program(rounds: int) -> Outcome:
    """A sleeper that makes room for a program that is not ours, so many times."""
    seconds: list[float] = []
    stayed = 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="llmux-bench-") as name:
            async with machine(Path(name), "90MiB") as bench:
                for model_name in "ab":
                    await bench.expect(model_name)
                async with bench.held_stream("b") as stream:
                    async with program(bench, 40):
                        began_at = time.monotonic()
                        while any(one.model == "a" for one in bench.ledger.snapshot().allocations):  # noqa: ASYNC110
                            await asyncio.sleep(LOOK_SECONDS)
                        seconds.append(time.monotonic() - began_at)
                        await bench.until_model("a", process_state="not_started")
                        is_running = await bench.process_state("b") == "running"
                    await bench.let_go("b")
                    await stream.read()
                    stayed += is_running and stream.is_complete
    figures = {"rounds": rounds, "seconds": [round(one, 2) for one in sorted(seconds)], "busy_one_stayed": stayed}
    outcome = Outcome(figures)
    outcome.require(
        max(seconds) <= LEAVES_WITHIN_SECONDS, f"the sleeper's memory is free within {LEAVES_WITHIN_SECONDS} s"
    )
    outcome.require(stayed == rounds, "the busy model stays and answers")
    return outcome


RUNS = ("three-of-four", "two-gpus", "foreign-program", "large-and-small")


async def measure(options: argparse.Namespace) -> dict[str, Outcome]:
    """Each chosen run's outcome."""
    found = {}
    for name in options.runs or RUNS:
        match name:
            case "three-of-four":
                found[name] = await three_of_four(options.requests)
            case "two-gpus":
                found[name] = await two_gpus(options.rounds)
            case "foreign-program":
                found[name] = await foreign_program(options.rounds)
            case _:
                found[name] = await large_and_small(options.minutes, options.policy)
    return found


def main() -> int:
    """Print the figures; exit code 1 if a bar is missed and ``--check`` was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", choices=[*RUNS, []], help=f"one of {', '.join(RUNS)}")
    parser.add_argument("--requests", type=int, default=120, help="of three-of-four")
    parser.add_argument("--rounds", type=int, default=10, help="of two-gpus, at most 10, and foreign-program")
    parser.add_argument("--minutes", type=float, default=10.0, help="of large-and-small")
    parser.add_argument("--policy", default="fifo", help="of large-and-small; the bound of others is wider")
    parser.add_argument("--check", action="store_true", help="fail where a bar is missed")
    options = parser.parse_args()
    found = asyncio.run(measure(options))
    print(json.dumps({name: {**one.figures, "missed": one.missed} for name, one in found.items()}, indent=2))
    return int(options.check and any(one.missed for one in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
