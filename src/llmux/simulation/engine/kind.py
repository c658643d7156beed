"""What the process of a simulated engine needs to know of the kind of engine that it imitates."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from aiohttp import web

from llmux.simulation.engine.core import SimulatedEngine
from llmux.simulation.engine.faults import Faults
from llmux.simulation.engine.memory import EngineMemory
from llmux.simulation.engine.options import EngineOptions, Timings

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]
"""Starts a task that goes on when its client disconnects (a sleep, a wake), and ends with the process."""

Parse: TypeAlias = Callable[[Sequence[str], Mapping[str, str]], tuple[EngineOptions, Timings, Faults]]
"""Reads a command line; exits with code 2 on a bad one."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a service is made of. Its memory is allocated already if its kind loads at the start."""

    options: EngineOptions
    timings: Timings
    faults: Faults
    memory: EngineMemory
    spawn: Spawn


@dataclass(frozen=True, slots=True)
class Service:
    """What one process serves."""

    application: web.Application
    stop: Callable[[], Awaitable[None]]
    """Called at SIGTERM; the process exits with 0 when it returns."""
    engine: SimulatedEngine | None
    """The one engine whose worker process is watched, where there is one."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of engine."""

    parse: Parse
    build: Callable[[Parts], Service]
    binds_first: bool = False
    """Whether the port is taken before the model is loaded, so that a taken one is noticed at once."""
    loads_at_start: bool = True
    worker_name: str = ""
