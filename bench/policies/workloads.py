"""Arrivals of different shapes, by seed: many models, bursts, one busy model among rare ones, long prompts, embeddings.

Each shape is a mixture of what single-GPU servers of several models are used for. Loads are those of one engine that
prefills 8,000 tokens and decodes 64 × 20 tokens a second; a stretch of 4 makes answers four times as long.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from llmux.simulation.traffic import TrafficRequest

Rows: TypeAlias = Iterator[tuple[float, str, float, float]]
"""Arrival in seconds, model, prompt tokens, output tokens."""


def workload(shape: str, seed: int, seconds: float, stretch: float = 1.0) -> list[TrafficRequest]:
    """The requests of a shape, in order of arrival."""
    rows = SHAPES[shape](random.Random(f"{shape} {seed}"), seconds)
    requests = [
        TrafficRequest(at, model, max(1, int(prompt)), max(1, int(output * stretch)))
        for at, model, prompt, output in rows
    ]
    return sorted(requests, key=lambda request: request.at_seconds)


def _poisson(chance: random.Random, rate: float, end: float, begin: float = 0.0) -> Iterator[float]:
    at = begin
    while (at := at + chance.expovariate(rate)) < end:
        yield at


def _chat(chance: random.Random) -> tuple[float, float]:
    return chance.lognormvariate(6.5, 1.0), chance.lognormvariate(5.3, 0.7)


def _zipf(models: int, rate: float, chance: random.Random, seconds: float) -> Rows:
    """Models asked for in the proportion 1, 1/2, 1/3, …"""
    whole = sum(1 / number for number in range(1, models + 1))
    for number in range(1, models + 1):
        for at in _poisson(chance, rate / whole / number, seconds):
            yield at, f"m{number}", chance.randint(100, 3000), chance.expovariate(1 / 200)


def _two(chance: random.Random, seconds: float) -> Rows:
    """A chat, and a code assistant with long prompts, short answers and bursts, like the Azure traces of 2023."""
    for at in _poisson(chance, 0.6, seconds):
        yield at, "chat", *_chat(chance)
    for at in _poisson(chance, 0.03, seconds):
        for _ in range(chance.randint(1, 15)):
            yield at + chance.random(), "code", chance.lognormvariate(7.4, 0.8), chance.lognormvariate(2.8, 0.9)


def _onoff(chance: random.Random, seconds: float) -> Rows:
    """Five models, each busy for 25 s and silent for 125 s on average."""
    for number in range(5):
        at = chance.uniform(0, 100)
        while at < seconds:
            off_at = at + chance.expovariate(1 / 25)
            for arrival in _poisson(chance, 3.0, min(seconds, off_at), at):
                yield arrival, f"b{number}", chance.lognormvariate(6.5, 1.0), chance.lognormvariate(5.0, 0.8)
            at = off_at + chance.expovariate(1 / 125)


def _hotcold(chance: random.Random, seconds: float) -> Rows:
    """One busy model, and fifteen that are asked for once in five minutes."""
    for at in _poisson(chance, 1.5, seconds):
        yield at, "hot", *_chat(chance)
    for number in range(15):
        for at in _poisson(chance, 1 / 300, seconds):
            yield at, f"cold{number}", *_chat(chance)


def _longmix(chance: random.Random, seconds: float) -> Rows:
    """One model with prompts of 60,000 to 140,000 tokens, beside two chats."""
    for at in _poisson(chance, 1 / 50, seconds):
        yield at, "long", chance.uniform(60e3, 140e3), chance.lognormvariate(5.5, 0.6)
    for number in range(2):
        for at in _poisson(chance, 0.3, seconds):
            yield at, f"chat{number}", *_chat(chance)


def _long(chance: random.Random, seconds: float) -> Rows:
    """Three models with such prompts."""
    for number in range(3):
        for at in _poisson(chance, 1 / 75, seconds):
            yield at, f"long{number}", chance.uniform(60e3, 140e3), chance.lognormvariate(5.5, 0.6)


def _embed(chance: random.Random, seconds: float) -> Rows:
    """Six models whose answers have one token."""
    for number in range(6):
        for at in _poisson(chance, 5 / (number + 1), seconds):
            yield at, f"e{number}", chance.randint(20, 300), 1


def _diurnal(chance: random.Random, seconds: float) -> Rows:
    """Five models whose load follows sines with different phases, two periods in all."""
    for number in range(5):
        for at in _poisson(chance, 0.6, seconds):
            if chance.random() < 0.5 * (1 + math.sin(2 * math.pi * (2 * at / seconds + number / 8))):
                yield at, f"d{number}", chance.lognormvariate(6.5, 1.0), chance.lognormvariate(5.2, 0.8)


SHAPES: Mapping[str, Callable[[random.Random, float], Rows]] = {
    "two": _two,
    "zipf6": lambda chance, seconds: _zipf(6, 0.7, chance, seconds),
    "zipf8": lambda chance, seconds: _zipf(8, 1.0, chance, seconds),
    "zipf40": lambda chance, seconds: _zipf(40, 0.5, chance, seconds),
    "onoff": _onoff,
    "hotcold": _hotcold,
    "longmix": _longmix,
    "long": _long,
    "embed": _embed,
    "diurnal": _diurnal,
}
