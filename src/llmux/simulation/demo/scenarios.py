"""What the demos run: which models share the GPU, how their engines behave, and what clients ask of them."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from llmux.simulation.traffic import RequestKind, TrafficRequest

CAPACITY_MIB = 24 << 10
REQUESTS_PER_SECOND = 9.0
LEAVING_SHARE = 0.12
"""Of the clients that disconnect early, which llmux must survive too."""
PATIENCE_SECONDS = (0.1, 1.5)
OUTPUT_TOKENS = (8, 48)
SUBJECTS = ("the tide", "a lighthouse", "rust on iron", "two trains", "a prime number", "old maps", "the north wind")


@dataclass(frozen=True, slots=True)
class Vllm:
    """A simulated vLLM."""

    start_seconds: float
    sleep_seconds: float = 0.0
    wake_seconds: float = 0.0
    reload_seconds: float = 0.0
    stop_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EmbeddingServer:
    """A simulated server of which llmux knows only the command line."""

    start_seconds: float
    stop_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ImageServer:
    """A simulated ComfyUI, whose work goes on when its requests have been answered."""

    start_seconds: float
    prompt_seconds: float
    free_seconds: float


Behaviour: TypeAlias = Vllm | EmbeddingServer | ImageServer


@dataclass(frozen=True, slots=True)
class DemoModel:
    """One model: its share of the traffic, what kinds of requests that is, and its engine."""

    name: str
    eviction: str
    share: float
    memory_mib: int
    asleep_mib: int
    engine: Behaviour
    kinds: Mapping[RequestKind, float]
    gpus: int = 1
    """How many it needs, and so much memory of each."""

    @property
    def name_on_gpu(self) -> str:
        """The name under which its engine holds memory of the virtual GPU."""
        return "ComfyUI" if isinstance(self.engine, ImageServer) else self.name


@dataclass(frozen=True, slots=True)
class Scenario:
    """The models of one demo, and how many GPUs of ``CAPACITY_MIB`` they share.

    On a single one, no two of them fit at the same time, with the residue of sleeping ones.
    """

    title: str
    models: tuple[DemoModel, ...]
    example: str
    """The model of the request that is shown for people to try."""
    gpus: int = 1

    def traffic(self, seed: int, seconds: float) -> Iterator[TrafficRequest]:
        """Requests in order of arrival for this long, each with another prompt; the same for the same seed."""
        chance = random.Random(seed)
        shares = [model.share for model in self.models]
        at_seconds, number = 0.0, 0
        while at_seconds < seconds:
            number += 1
            model = chance.choices(self.models, shares)[0]
            kind = chance.choices(list(model.kinds), list(model.kinds.values()))[0]
            prompt = f"Question {number}: what do you say about {chance.choice(SUBJECTS)}?"
            output_tokens = chance.randint(*OUTPUT_TOKENS)
            patience_seconds = chance.uniform(*PATIENCE_SECONDS) if chance.random() < LEAVING_SHARE else None
            yield TrafficRequest(
                at_seconds, model.name, len(prompt.split()), output_tokens, kind, prompt, patience_seconds
            )
            at_seconds += chance.expovariate(REQUESTS_PER_SECOND)


TEXT = {RequestKind.CHAT_STREAM: 0.6, RequestKind.CHAT: 0.25, RequestKind.COMPLETION: 0.15}
OFFLOADED = Vllm(0.7, sleep_seconds=0.2, wake_seconds=0.35)

CHATS = Scenario(
    "three models on a GPU that holds one",
    (
        DemoModel("llama", "offload+keep_running", 0.45, 20 << 10, 1 << 10, OFFLOADED, TEXT),
        DemoModel(
            "qwen",
            "discard+keep_running",
            0.35,
            18 << 10,
            1 << 10,
            Vllm(0.7, sleep_seconds=0.1, wake_seconds=0.1, reload_seconds=0.4),
            TEXT,
        ),
        DemoModel("coder", "retain+stop", 0.2, 21 << 10, 1 << 10, Vllm(0.9, stop_seconds=0.1), TEXT),
    ),
    example="qwen",
)
"""Chat models only; each leaves the GPU in another way."""

MIXED = Scenario(
    "chats, embeddings, images: one GPU",
    (
        DemoModel(
            "chat",
            "offload+keep_running",
            0.5,
            18 << 10,
            1 << 10,
            OFFLOADED,
            {RequestKind.CHAT_STREAM: 0.7, RequestKind.CHAT: 0.3},
        ),
        DemoModel(
            "embed",
            "retain+stop",
            0.35,
            9 << 10,
            0,
            EmbeddingServer(0.5, stop_seconds=0.1),
            {RequestKind.EMBEDDING: 1.0},
        ),
        DemoModel(
            "images",
            "offload+keep_running",
            0.15,
            16 << 10,
            # llmux's description of ComfyUI takes up to 512 MiB for freed.
            400,
            ImageServer(0.3, prompt_seconds=0.25, free_seconds=0.1),
            {RequestKind.IMAGE: 1.0},
        ),
    ),
    example="chat",
)
"""Three kinds of engines."""

FLEET = Scenario(
    "five models on two GPUs, one on both",
    (
        DemoModel("llama", "offload+keep_running", 0.3, 12 << 10, 256, OFFLOADED, TEXT),
        DemoModel("qwen", "offload+keep_running", 0.27, 11 << 10, 256, OFFLOADED, TEXT),
        DemoModel("coder", "offload+keep_running", 0.2, 10 << 10, 256, OFFLOADED, TEXT),
        DemoModel("mini", "retain+stop", 0.2, 8 << 10, 256, Vllm(0.5, stop_seconds=0.1), TEXT),
        DemoModel("large", "offload+keep_running", 0.03, 20 << 10, 256, OFFLOADED, TEXT, gpus=2),
    ),
    example="qwen",
    gpus=2,
)
"""The four small ones fit beside each other, two on each GPU; the large one needs most of both."""
