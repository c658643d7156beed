"""The real vLLM for tests: where it is, how llmux is told to run it, and what it answers without llmux."""

import asyncio
import json
import os
import re
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import aiohttp
import openai
import psutil

from llmux.hosts.local import choose_ports
from tests.support.engines import vllm_engine
from tests.support.server import LlmuxProcess, chat

VARIABLES = ("LLMUX_TEST_VLLM", "LLMUX_TEST_MODELS", "LLMUX_TEST_VLLM_PLUGIN")
MISSING = [name for name in VARIABLES if not os.environ.get(name)]
SKIP_REASON = f"the real vLLM is not configured: set {', '.join(MISSING)}, see docs/testing.md"

START_SECONDS = 240.0
REQUEST_SECONDS = 300.0
KV_CACHE = "64M"
MAX_TOKENS = 12

PROMPTS = (
    "Hello",
    "What is the capital of France?",
    "sleep wake restart stop",
    "one two three four",
    "The quick brown fox",
    "import os",
    "There was once a model",
    "we the people",
    "A multiplexer switches between",
    "0123456789",
)

Question = tuple[str, bool]
"""A prompt, and whether it is asked as a chat."""

QUESTIONS: tuple[Question, ...] = tuple((prompt, is_chat) for prompt in PROMPTS for is_chat in (False, True))


def program() -> str:
    """The vLLM command of the virtual environment."""
    return str(Path(os.environ["LLMUX_TEST_VLLM"]) / "bin" / "vllm")


def model_path(name: str) -> str:
    """The directory of one of the tiny models."""
    return str(Path(os.environ["LLMUX_TEST_MODELS"]) / name)


WORKER = "releasing_worker.ReleasingWorker"
"""One that can release its KV cache alone."""


def engine_environment(**more: str) -> dict[str, str]:
    """What a CPU engine needs: the plugin whose sleep frees memory, no network, and one process fewer to start.

    ``VLLM_CPU_FORK`` is the plugin's: the engine core is forked and does not import vLLM again, which takes 4 s of 14.
    One thread, because several wait for each other busily: beside anything else that runs they were five times slower.
    """
    return {
        "PYTHONPATH": f"{os.environ['LLMUX_TEST_VLLM_PLUGIN']}:{Path(__file__).with_name('vllm_worker')}",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_FORK": "1",
        **more,
    }


def engine_arguments(kv_cache: str = KV_CACHE, context: int = 512) -> list[str]:
    """Arguments that keep a tiny model small, and its answers those of float32."""
    return [
        *("--dtype", "float32", "--max-model-len", str(context), "--max-num-seqs", "8"),
        *("--enforce-eager", "--kv-cache-memory-bytes", kv_cache),
        *("--worker-cls", WORKER),
    ]


def real_model(
    path: str, eviction: str, *, kv_cache: str = KV_CACHE, context: int = 512, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One model of a configuration."""
    return {
        "model_path": model_path(path),
        "eviction": eviction,
        "extra_args": engine_arguments(kv_cache, context),
        "env": engine_environment(**(env or {})),
    }


def real_config(models: Mapping[str, Mapping[str, Any]], **top_level: Any) -> dict[str, Any]:
    """A configuration over real engines that switches as soon as it may."""
    soon = {"policy_type": "fifo", "min_active_seconds": 0.0, "request_timeout_seconds": REQUEST_SECONDS}
    policy = {**soon, **top_level.pop("policy", {})}
    base = {"vllm_command": program(), "port": 0, "metrics_port": 0, "start_timeout_seconds": START_SECONDS}
    return {**base, "policy": policy, "models": models, **top_level}


def greedy_answers(models: Sequence[str]) -> dict[str, dict[Question, str]]:
    """What each model says to ``QUESTIONS`` when it is asked without llmux."""
    ports = choose_ports(len(models))
    with ThreadPoolExecutor(len(models)) as threads:
        return dict(zip(models, threads.map(_answers_alone, models, ports), strict=True))


def _answers_alone(model: str, port: int) -> dict[Question, str]:
    # Short and not pytest's own: vLLM puts its sockets there.
    engine = vllm_engine(
        model,
        *engine_arguments(),
        program=program(),
        model_path=model_path(model),
        environment=engine_environment(),
    )
    with tempfile.TemporaryDirectory(prefix="llmux-alone-") as directory:
        output = Path(directory) / "output"
        with output.open("wb") as sink:
            process = subprocess.Popen(
                engine.command_line(port),
                env=engine.environment(os.environ, directory, checkpointable=False),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_until_healthy(process, port, output)
            return {question: _ask_alone(port, model, question) for question in QUESTIONS}
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(engine: subprocess.Popen[bytes], port: int, output: Path) -> None:
    deadline = monotonic() + START_SECONDS
    while monotonic() < deadline and engine.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            sleep(0.2)
        else:
            return
    raise AssertionError(f"vLLM alone does not start:\n{output.read_text(errors='replace')[-4000:]}")


def _ask_alone(port: int, model: str, question: Question) -> str:
    prompt, is_chat = question
    asked = {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}
    body = {"model": model, "max_tokens": MAX_TOKENS, "temperature": 0, **asked}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/{'chat/' if is_chat else ''}completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        choice = json.load(response)["choices"][0]
    text = choice["message"]["content"] if is_chat else choice["text"]
    return str(text)


@asynccontextmanager
async def kept_stream(server: LlmuxProcess, model: str, tokens: int) -> AsyncIterator["KeptStream"]:
    """A streamed chat answer that is read as it comes, to its end, while the test does other things."""
    async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as session:
        stream = KeptStream()
        reading = tasks.create_task(stream.read(session, server, model, tokens))
        yield stream
        await reading


@dataclass
class KeptStream:
    """What a streamed answer brought, and when."""

    times: list[float] = field(default_factory=list)
    text: str = ""
    errors: list[Any] = field(default_factory=list)
    comments: int = 0
    ends: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, session: aiohttp.ClientSession, server: LlmuxProcess, model: str, tokens: int) -> None:
        body = chat(model, "Hello", stream=True, max_tokens=tokens, temperature=0, ignore_eos=True)
        limit = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        async with session.post(f"{server.url}/v1/chat/completions", json=body, timeout=limit) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                self._take(line)

    def _take(self, line: bytes) -> None:
        self.comments += line.startswith(b":")
        self.ends += line.startswith(b"data: [DONE]")
        if line.startswith(b"data: {"):
            document = json.loads(line[6:])
            self.errors += [document["error"]] if "error" in document else []
            self.text += "".join(choice["delta"].get("content") or "" for choice in document.get("choices", ()))
            self.times.append(monotonic())
            self._news.set()

    async def wait_for_chunks(self, count: int) -> None:
        """Wait until so many events have come."""
        while len(self.times) < count:
            self._news.clear()
            await self._news.wait()

    def gap_seconds(self, since: float) -> float:
        """The longest time between two events after this moment."""
        return max(later - earlier for earlier, later in pairwise(self.times) if later > since)


def openai_client(server: LlmuxProcess) -> openai.AsyncOpenAI:
    """The stock client, which repeats nothing by itself: what llmux loses is lost."""
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=REQUEST_SECONDS)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got."""

    text: str
    finish_reason: str | None
    model: str


async def ask(client: openai.AsyncOpenAI, model: str, question: Question, *, is_stream: bool) -> Answer:
    """One greedy request."""
    prompt, is_chat = question
    common: dict[str, Any] = {"model": model, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": is_stream}
    if is_chat:
        common["messages"] = [{"role": "user", "content": prompt}]
        reply: Any = await client.chat.completions.create(**common)
    else:
        reply = await client.completions.create(prompt=prompt, **common)
    if not is_stream:
        choice = reply.choices[0]
        return Answer(choice.message.content if is_chat else choice.text, choice.finish_reason, reply.model)
    text, finish_reason, echoed = "", None, ""
    async for chunk in reply:
        echoed = chunk.model
        for choice in chunk.choices:
            text += (choice.delta.content if is_chat else choice.text) or ""
            finish_reason = choice.finish_reason or finish_reason
    return Answer(text, finish_reason, echoed)


Alone = dict[str, dict[Question, str]]
"""What each model says to each question without llmux."""

Request = tuple[str, Question, bool]
"""The model, what it is asked, and whether the answer is to be streamed."""


def alternating(models: str, count: int) -> list[Request]:
    """Requests for one model and the other in turn, over all questions, streamed or not."""
    questions = cycle(question for question in QUESTIONS for _ in models)
    is_stream = cycle([False] * len(models) + [True] * len(models) + [True] * len(models))
    return list(islice(zip(cycle(models), questions, is_stream, strict=False), count))


async def check(client: openai.AsyncOpenAI, alone: Alone, request: Request) -> None:
    """Ask; the answer is the one that the engine alone gives."""
    model, question, is_stream = request
    answer = await ask(client, model, question, is_stream=is_stream)
    assert answer.text == alone[model[0]][question], f"{model} {question} {is_stream=}"
    assert answer.finish_reason in ("stop", "length")
    assert answer.model == model


def events(stream: bytes) -> list[dict[str, object]]:
    """The JSON documents of a stream."""
    lines = [line.removeprefix(b"data: ") for line in stream.splitlines() if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


async def set_eviction(server: LlmuxProcess, models: str, eviction: str) -> None:
    """Let these models leave in this way from now on."""
    weights, process = eviction.split("+")
    async with aiohttp.ClientSession() as session:
        for model in models:
            change = {"model": model, "eviction": {"weights": weights, "process": process}}
            async with session.post(f"{server.url}/control/eviction", json=change) as response:
                assert response.status == 200, await response.text()


@dataclass(frozen=True, slots=True)
class StartedEngine:
    """One start that llmux logged."""

    model: str
    pid: int
    address: str
    """Its port, or the path of its Unix socket."""

    def open(self) -> aiohttp.ClientSession:
        """A session for requests to it, with paths for URLs."""
        if self.address.isdecimal():
            return aiohttp.ClientSession(f"http://127.0.0.1:{self.address}")
        return aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(self.address))

    def family(self) -> list[psutil.Process]:
        """The root and all of its descendants that live."""
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def memory_mib(self) -> float:
        """Resident memory of all of its processes together."""
        return sum(process.memory_info().rss for process in self.family()) / (1 << 20)

    def child(self, name: str) -> psutil.Process:
        """The descendant whose name begins so, such as ``VLLM::EngineCore``."""
        return next(process for process in self.family() if process.name().startswith(name[:15]))


def starts(server: LlmuxProcess, model: str | None = None) -> list[StartedEngine]:
    """Every start so far, in order; of one model, or of all."""
    found = []
    for line in server.log:
        if "engine started" in line:
            facts = dict(re.findall(r"(model|pid|port|socket)=(\S+)", line))
            address = facts.get("socket") or facts["port"]
            found.append(StartedEngine(facts["model"], int(facts["pid"]), address))
    return [one for one in found if model in (None, one.model)]


def switches(server: LlmuxProcess) -> int:
    """How often a model came onto the GPU so far."""
    return sum("switched" in line.split() for line in server.log)


async def all_gone(processes: Sequence[psutil.Process], deadline_seconds: float) -> bool:
    """Whether all of them end within the time; a zombie has ended."""
    deadline = monotonic() + deadline_seconds
    while any(_lives(process) for process in processes):
        if monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
