"""Switches between two engines under a real ``llmux serve``: the same answers afterwards, and memory that is free."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

import aiohttp

from bench.gpu.programs import EngineProgram
from bench.gpu.resident import HOOK
from llmux.config.load import load
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction, Process, Weights
from llmux.errors import ConfigError
from llmux.gpus.cuda import CudaUnusable
from llmux.gpus.hook import VARIABLE
from llmux.gpus.memory import GpuReader, total_used_mib
from llmux.server.build import build_cuda
from tests.support.server import LISTENING, LlmuxProcess

ROOT = Path(__file__).parents[2]
MODELS = ("a", "b")
PROMPTS = ("Hello", "What is the capital of France?")
ANSWER_TOKENS = 6
STREAM_TOKENS = 80
TOKEN_MS = 10
FROZEN_AFTER = 10
"""Events of a stream before the switch that freezes it."""
PROGRESS_EVERY = 5
BESIDE_TENSORS_MIB = 1024
"""What an engine takes of a GPU beside its tensors, at most: its CUDA context, and a checksum's for a moment."""
LEAST_FREED = 0.9
"""Of the tensors of an engine that has left; the rest is for what allocators round up."""
TOLERANCE_MIB = 128
"""By which the used memory of the same state may differ between two readings."""
FREED_LIMIT_SECONDS = 5.0
"""The driver frees the memory of an ended process a moment later."""
REQUEST_LIMIT_SECONDS = 120.0
CONTROL_LIMIT_SECONDS = 60.0
START_LIMIT_SECONDS = 60.0
STOP_LIMIT_SECONDS = 60.0
DEVIATIONS = re.compile(r"instead|unfaithful|could not bring|tried all the same|no canary")
"""What llmux logs where it does something else than it was asked."""
SWITCHED = re.compile(r"\bswitched .*model=(\w+) previous=(?!None)(\w+) .*sleep_seconds=(\S+) wake_seconds=(\S+)")


@dataclass(frozen=True, slots=True)
class Plan:
    """What every server of a check has in common."""

    program: EngineProgram
    reader: GpuReader
    directory: Path
    weights_mib: int
    kv_cache_mib: int
    switches: int
    criu: str
    say: Callable[[str], None]
    """Called with what is being done, for those who watch."""
    filled_mib: int = 0
    """What a process of the check's own holds, so that two engines do not fit together."""
    planted_fault: str | None = None

    @property
    def tensors_mib(self) -> int:
        """What an engine holds on the GPU beside its CUDA context."""
        return self.weights_mib + self.kv_cache_mib

    def model_path(self, name: str) -> Path:
        """Where a model's weights are."""
        return self.directory / "models" / name

    def weights_flags(self, name: str) -> tuple[str, ...]:
        """The arguments of an engine that say what its weights are."""
        return ("--weights-mib", str(self.weights_mib), "--seed", str(MODELS.index(name) + 1))

    def configuration(self, eviction: Eviction, *, together: bool = False) -> dict[str, Any]:
        """llmux's configuration; every model leaves in this way.

        ``together``: it says how much memory each takes, so that those that fit are placed beside each other.
        """
        command = self.program.install(self.directory / "engine")
        planted = ("--planted-fault", self.planted_fault) if self.planted_fault else ()
        models = {
            name: {
                "model_path": str(self.model_path(name)),
                "eviction": str(eviction),
                "drain": "wait" if eviction.process is Process.STOP else "freeze",
                "extra_args": [
                    *self.weights_flags(name),
                    *("--kv-cache-memory-bytes", f"{self.kv_cache_mib}M", "--token-ms", str(TOKEN_MS)),
                    *self.program.flags,
                    *planted,
                ],
            }
            for name in MODELS
        }
        placed: dict[str, Any] = {}
        if together:
            need_mib = self.tensors_mib + BESIDE_TENSORS_MIB
            models = {name: {**one, "gpu_memory": f"{need_mib}MiB", "gpus": [0]} for name, one in models.items()}
            # NVML says how large a GPU is.
            placed = {} if self.program.device != "cpu" else {"gpus": [{"memory": f"{3 * need_mib}MiB"}]}
        return {
            **placed,
            "vllm_command": str(command),
            "port": 0,
            "metrics_port": 0,
            # The check itself compares the answers; the canary would hide a wrong one by starting the engine anew.
            "canary": "off",
            "memory_wait_seconds": FREED_LIMIT_SECONDS,
            "start_timeout_seconds": REQUEST_LIMIT_SECONDS,
            **{f"{call}_timeout_seconds": CONTROL_LIMIT_SECONDS for call in ("sleep", "wake", "reload")},
            "policy": {
                "policy_type": "fifo",
                "min_active_seconds": 0,
                "request_timeout_seconds": REQUEST_LIMIT_SECONDS,
            },
            "checkpoint": {
                "criu_path": self.criu,
                "images_dir": str(self.directory / "images"),
                "keep_images": False,
            },
            "models": models,
        }


@dataclass(slots=True)
class Combination:
    """What one eviction has shown."""

    eviction: Eviction
    why_not: str | None = None
    """Why it is not possible here; nothing else was then tried."""
    is_late: bool = False
    """Whether the time was up before it had been tried."""
    switches: int = 0
    leave_seconds: list[float] = field(default_factory=list)
    wake_seconds: list[float] = field(default_factory=list)
    held_mib: int = 0
    """What an engine that serves holds; the mean of both."""
    freed_mib: int = 0
    """What it gives back when it leaves; the lesser of both."""
    stream_gap_seconds: float | None = None
    """How long a stream stood still that a switch away and back froze; None if none was frozen."""
    problems: list[str] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        own = {name: getattr(self, name) for name in self.__slots__}
        return {**own, "eviction": str(self.eviction)}


Answers: TypeAlias = dict[tuple[str, str, int], str]
"""What each model said first, by model, prompt and number of tokens."""


class UnexpectedAnswer(Exception):
    """A request was refused, or a model says something else than before."""


class Site:
    """A running llmux, its clients, and the memory that its engines use."""

    def __init__(self, plan: Plan, server: LlmuxProcess, session: aiohttp.ClientSession, answers: Answers) -> None:
        """``answers`` are kept by all servers of a check: a model's first ones, before it had ever left the GPU."""
        self._plan = plan
        self._server = server
        self._session = session
        self._answers = answers

    async def ask(self, model: str, prompt: str, tokens: int = ANSWER_TOKENS) -> None:
        """Ask a model, which llmux brings onto the GPU; raises UnexpectedAnswer if it says something new."""
        body = {"model": model, "prompt": prompt, "max_tokens": tokens}
        document = await self._post("/v1/completions", body)
        text = str(document["choices"][0]["text"])
        before = self._answers.setdefault((model, prompt, tokens), text)
        if text != before:
            raise UnexpectedAnswer(f"WRONG CHECKSUM: {model} says {text!r}, before it was {before!r}")

    def expected(self, model: str, prompt: str, tokens: int) -> str:
        """What the model said first."""
        return self._answers[model, prompt, tokens]

    async def control(self, path: str, model: str, eviction: Eviction) -> None:
        """Tell llmux what to do with a model; raises UnexpectedAnswer if it refuses."""
        parts = {"weights": str(eviction.weights), "process": str(eviction.process)}
        await self._post(path, {"model": model, "eviction": parts})

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        async with self._session.post(self._server.url + path, json=body) as response:
            text = await response.text()
            if response.status != 200:
                raise UnexpectedAnswer(f"POST {path} {body['model']}: {response.status} {text[:500]}")
            return json.loads(text)

    async def stream(self, model: str, prompt: str, tokens: int) -> AsyncIterator[str]:
        """The pieces of a streamed answer as they come; raises UnexpectedAnswer if it does not end as it should."""
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True}
        async with self._session.post(f"{self._server.url}/v1/completions", json=body) as response:
            async for line in response.content:
                data = line.decode().removeprefix("data: ").strip()
                if not line.startswith(b"data: "):
                    continue
                if data == "[DONE]":
                    return
                document = json.loads(data)
                if "error" in document:
                    raise UnexpectedAnswer(f"the stream ended with an error: {document['error']}")
                yield str(document["choices"][0]["text"])
        raise UnexpectedAnswer("the stream broke off")

    async def used_mib(self) -> int:
        """GPU memory that is used, by whomever."""
        return total_used_mib(await asyncio.to_thread(self._plan.reader.read_memory))

    async def used_at_most(self, mib: int) -> int:
        """The same once it is at most so much, or when the time for it is up."""
        give_up_at = monotonic() + FREED_LIMIT_SECONDS
        while True:
            used = await self.used_mib()
            if used <= mib or monotonic() > give_up_at:
                return used
            await asyncio.sleep(0.1)

    def switches(self) -> list[tuple[float, float]]:
        """Seconds to leave and to come back, of each switch from one model to the other so far."""
        return [(float(found[3]), float(found[4])) for found in self._server.find_in_log(SWITCHED.pattern)]

    async def until_switches(self, count: int) -> None:
        """Wait until the log has them: the answer may be here sooner."""
        give_up_at = monotonic() + FREED_LIMIT_SECONDS
        while len(self.switches()) < count:
            if monotonic() > give_up_at:
                raise UnexpectedAnswer(f"llmux has logged {len(self.switches())} of {count} switches")
            await asyncio.sleep(0.01)

    def log_length(self) -> int:
        """How many lines llmux has logged."""
        return len(self._server.log)

    def deviations(self, since: int) -> list[str]:
        """What llmux has logged since then of what it did otherwise than asked."""
        return [line for line in self._server.log[since:] if DEVIATIONS.search(line)]

    def starts(self) -> int:
        """How many engines were started."""
        return len(self._server.find_in_log("engine started"))

    def log_tail(self, lines: int = 15) -> list[str]:
        """The end of llmux's log."""
        return self._server.log[-lines:]


async def why_refused(plan: Plan, eviction: Eviction) -> str | None:
    """Why llmux itself refuses engines that leave in this way; None if it does not."""
    file = plan.directory / "llmux.json"
    file.write_text(json.dumps(plan.configuration(eviction)))
    try:
        settings = load(file).settings
    except ConfigError as error:
        return "; ".join(map(str, error.problems))
    if eviction.process is Process.CUDA_SUSPEND and (reason := await _why_no_suspend(settings)):
        return reason
    return settings.engine_of(MODELS[0]).why_not(eviction)


async def _why_no_suspend(settings: Settings) -> str | None:
    cuda = build_cuda(settings)
    try:
        await cuda.check()
    except CudaUnusable as refusal:
        return str(refusal)
    finally:
        await cuda.close()
    return None


@asynccontextmanager
async def serving(plan: Plan, eviction: Eviction, answers: Answers, *, together: bool = False) -> AsyncIterator[Site]:
    """A real llmux over two engines; at the end it is stopped, with them. ``together`` as in ``configuration``."""
    file = plan.directory / "llmux.json"
    file.write_text(json.dumps(plan.configuration(eviction, together=together)))
    paths = [str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment[VARIABLE] = HOOK if plan.program.device == "cpu" else ""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llmux", "serve", "-c", str(file)),
        stderr=asyncio.subprocess.PIPE,
        cwd=plan.directory,
        env=environment,
    )
    # It asks of a process only what a real one has, too.
    server = LlmuxProcess(process)  # type: ignore[arg-type]
    timeout = aiohttp.ClientTimeout(total=REQUEST_LIMIT_SECONDS)
    async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession(timeout=timeout) as session:
        reading = tasks.create_task(server.read_log())
        try:
            listening = tasks.create_task(server.wait_for_log(LISTENING.pattern, START_LIMIT_SECONDS))
            await asyncio.wait({listening, reading}, return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                listening.cancel()
                raise UnexpectedAnswer("llmux did not start: " + " / ".join(server.log[-5:]))
            server.url = listening.result()[1]
            yield Site(plan, server, session, answers)
        finally:
            try:
                await server.terminate(STOP_LIMIT_SECONDS)
            except TimeoutError:
                # Its engines do not outlive it.
                process.kill()
                raise


def reason_of(failures: BaseExceptionGroup[Exception]) -> str:
    """What the exceptions of a group say."""
    reasons = (
        reason_of(one) if isinstance(one, BaseExceptionGroup) else str(one) or type(one).__name__
        for one in failures.exceptions
    )
    return "; ".join(reasons)


async def try_out(site: Site, plan: Plan, eviction: Eviction, give_up_at: float) -> Combination:
    """Let both engines leave by one eviction and come back, again and again; what goes wrong ends it."""
    result = Combination(eviction)
    since = site.log_length()
    try:
        await _Trial(site, plan, result, give_up_at, since).run()
    except* (UnexpectedAnswer, aiohttp.ClientError, TimeoutError, OSError) as failures:
        result.problems.append(reason_of(failures))
    result.problems += [f"llmux logged: {line}" for line in site.deviations(since)]
    return result


@dataclass(frozen=True, slots=True)
class _Trial:
    site: Site
    plan: Plan
    result: Combination
    give_up_at: float
    since: int
    """Where its part of llmux's log begins."""

    async def run(self) -> None:
        for model in MODELS:
            await self.site.control("/control/eviction", model, self.result.eviction)
        starts = await self._leave_alone()
        if not self._is_wrong():
            await self._switch()
        if self.result.eviction.process is Process.STOP or self._is_wrong():
            return
        await self._freeze_a_stream()
        if self.site.starts() > starts:
            self.result.problems.append("an engine was started anew: it had not left as it was to")

    def _is_wrong(self) -> bool:
        return bool(self.result.problems or self.site.deviations(self.since))

    async def _leave_alone(self) -> int:
        """Both leave one after the other while nobody comes; returns how many engines were started by then."""
        for model in MODELS:
            for prompt in PROMPTS:
                await self.site.ask(model, prompt)
        starts = self.site.starts()
        held = []
        for model in MODELS if not self._is_wrong() else ():
            await self.site.ask(model, PROMPTS[0])
            before = await self.site.used_mib()
            await self.site.control("/control/sleep", model, self.result.eviction)
            least_mib = int(LEAST_FREED * self.plan.tensors_mib)
            after = await self.site.used_at_most(before - least_mib)
            held.append(before - after)
            self.result.freed_mib = min(held)
            if before - after < least_mib:
                self.result.problems.append(
                    f"MEMORY NOT FREED: {model} holds {self.plan.tensors_mib} MiB of tensors, and gave back "
                    f"{before - after} MiB of the {before} in use"
                )
            if self._is_wrong():
                break
        return starts

    async def _switch(self) -> None:
        """Switches that requests cause; after each no more is used than by the model that has come, alone."""
        empty = await self.site.used_mib()
        await self.site.ask("a", PROMPTS[0])
        self.result.held_mib = await self.site.used_mib() - empty
        at_most = empty + self.result.held_mib + max(TOLERANCE_MIB, self.plan.tensors_mib // 10)
        seen = len(self.site.switches())
        for number in range(self.plan.switches):
            if self._is_wrong() or (monotonic() > self.give_up_at and number % 2 == 0):
                break
            await self.site.ask("ba"[number % 2], PROMPTS[number // 2 % 2])
            used = await self.site.used_at_most(at_most)
            if used > at_most:
                self.result.problems.append(
                    f"MEMORY NOT FREED: after switch {number + 1} {used} MiB are in use, of {at_most} at most"
                )
            self.result.switches += 1
            if self.result.switches % PROGRESS_EVERY == 0:
                self.plan.say(f"{self.result.eviction}: {self.result.switches} of {self.plan.switches} switches")
        await self.site.until_switches(seen + self.result.switches)
        times = self.site.switches()[seen:]
        self.result.leave_seconds = [leave for leave, _ in times]
        self.result.wake_seconds = [wake for _, wake in times]

    async def _freeze_a_stream(self) -> None:
        """A switch away and back in mid-stream: the client gets the same text as without it, once."""
        prompt, tokens = "a stream", STREAM_TOKENS
        await self.site.ask("a", prompt, tokens)
        pieces, times = [], []
        answered_at = None
        async with asyncio.TaskGroup() as tasks:
            other = None
            async for piece in self.site.stream("a", prompt, tokens):
                pieces.append(piece)
                times.append(monotonic())
                if len(pieces) == FROZEN_AFTER:
                    other = tasks.create_task(self._answered_at("b"))
            if other is not None:
                answered_at = await other
        text = "".join(pieces)
        if text != self.site.expected("a", prompt, tokens):
            raise UnexpectedAnswer(f"WRONG STREAM: a frozen stream says {text!r}")
        if answered_at is None or answered_at > times[-1]:
            raise UnexpectedAnswer("no switch came in mid-stream, so nothing was frozen")
        self.result.stream_gap_seconds = max(late - early for early, late in pairwise(times))

    async def _answered_at(self, model: str) -> float:
        await self.site.ask(model, PROMPTS[0])
        return monotonic()


@dataclass(slots=True)
class Together:
    """What two engines did whose needs fit beside each other."""

    why_not: str | None = None
    """Why it was not tried."""
    held_mib: int = 0
    """What both held in the end."""
    problems: list[str] = field(default_factory=list)


async def stay_together(plan: Plan, answers: Answers) -> Together:
    """Place two engines by their memory: both must stay on the GPU, whoever is asked."""
    result = Together()
    if plan.planted_fault:
        result.why_not = "the planted fault shows only when an engine leaves"
        return result
    [gpu] = (await asyncio.to_thread(plan.reader.read_memory))[:1]
    if gpu.free_mib < 2 * (plan.tensors_mib + BESIDE_TENSORS_MIB):
        result.why_not = f"two engines do not fit into the {gpu.free_mib} MiB that are free"
        return result
    try:
        async with serving(plan, Eviction(Weights.OFFLOAD, Process.KEEP_RUNNING), answers, together=True) as site:
            for model in MODELS * 3:
                await site.ask(model, PROMPTS[0])
            result.held_mib = await site.used_mib() - gpu.used_mib
            if result.held_mib < 2 * plan.tensors_mib:
                result.problems.append(f"two engines hold {result.held_mib} MiB, not {plan.tensors_mib} each")
            if site.switches() or site.starts() != len(MODELS):
                result.problems.append("one engine left for the other, although both fit")
            result.problems += [f"llmux logged: {line}" for line in site.deviations(0)]
    except* (UnexpectedAnswer, aiohttp.ClientError, TimeoutError) as failures:
        result.problems.append(reason_of(failures))
    return result


def moved_mib(plan: Plan, eviction: Eviction, *, out: bool) -> int | None:
    """What an engine copies of its tensors when it leaves (``out``) or comes back; None where it copies none."""
    match eviction:
        case Eviction(_, Process.STOP) | Eviction(Weights.DISCARD, _):
            return None if out else plan.weights_mib
        case Eviction(Weights.OFFLOAD, _):
            return plan.weights_mib
        case _:
            return plan.tensors_mib
