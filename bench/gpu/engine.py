#!/usr/bin/env python3
"""A small engine that really uses a GPU: PyTorch and the standard library, with vLLM's command line and control calls.

It holds weights (random numbers from a seed) and a KV cache, and nothing else of a language model. What it says shows
what its memory holds: each answer begins and ends with a checksum, computed on the GPU, of all weights and the prompt;
every token between them depends on the KV cache and on one weight. Sleep really frees the memory: level 1 copies the
weights into pinned host memory, level 2 forgets them, and ``reload_weights`` reads the disk again. Until then the
weights of a waking engine are garbage. Suspended requests recompute their part of the KV cache, as in vLLM.

    engine.py serve MODEL --kv-cache-memory-bytes 1G --weights-mib 4096 [--device cpu] ...
    engine.py prepare MODEL ...    writes the model's weights to the disk, which a first start does otherwise
    engine.py hold --mib 1024      holds GPU memory until its standard input ends
    engine.py facts                what PyTorch says of this machine, as JSON

MODEL is a directory. With ``--device cpu`` the process's own memory takes the place of the GPU's, and a file in TMPDIR
that of host memory, so that what is given up can be seen there too.
"""

import argparse
import asyncio
import ctypes
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

MIB = 1 << 20
CHUNK_MIB = 64
CHUNK_BYTES = CHUNK_MIB * MIB
CHUNK_LENGTH = CHUNK_BYTES // 8
GARBAGE = 0x5A5A5A5A5A5A5A5A
MODULUS = 1 << 64
SLOTS = 8
"""Requests that are computed at the same time; each has a row of the KV cache."""
MULTIPLIER = 6364136223846793005
"""Of Knuth's linear congruential generator, by which each entry of the KV cache follows from the one before it."""
WEIGHTS, KV_CACHE = "weights", "kv_cache"
TAGS = (WEIGHTS, KV_CACHE)
RPC_METHODS = ("reload_weights", "checkpoint_prepare", "checkpoint_restore", "suspend_nccl", "resume_nccl")
CORRUPT, KEEP_ALL, KEEP_HALF = "corrupt-weight", "keep-memory", "keep-half"
FAULTS = (CORRUPT, KEEP_ALL, KEEP_HALF)
"""What the check must notice: a wake that changes one weight, a sleep that frees nothing, one that frees half."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size_in_bytes(text: str) -> int:
    """Read a size as vLLM does: a number with K, M or G (powers of 1024) or without."""
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size")
    return int(match[1]) * _UNITS[match[2]]


def say(text: str) -> None:
    """Write a line to the engine's log."""
    print(f"(EngineCore) {text}", file=sys.stderr, flush=True)


def bytes_of(tensor: Any) -> Any:
    """A tensor's memory on the host as a buffer that files can be read into and written from."""
    return (ctypes.c_char * (tensor.numel() * 8)).from_address(tensor.data_ptr())


class Device:
    """The GPU, or with ``cpu`` this process's own memory."""

    def __init__(self, name: str) -> None:
        # Not at the top: the engine's command line is also read where there is no PyTorch.
        self.torch = import_module("torch")
        self.name = name
        self.is_gpu = name != "cpu"
        if not self.is_gpu:
            self.torch.set_num_threads(1)

    def empty(self, length: int) -> Any:
        """64-bit integers on the device, not initialised."""
        return self.torch.empty(length, dtype=self.torch.int64, device=self.name)

    def pinned(self, length: int) -> Any:
        """64-bit integers in host memory that the GPU can copy from and to by itself."""
        return self.torch.empty(length, dtype=self.torch.int64, pin_memory=True)

    def finish(self) -> None:
        """Wait until everything that was begun is done."""
        if self.is_gpu:
            self.torch.cuda.synchronize()

    def give_back(self) -> None:
        """Hand freed memory back to the driver, which PyTorch would keep."""
        if self.is_gpu:
            self.torch.cuda.synchronize()
            self.torch.cuda.empty_cache()

    def positions(self) -> Any:
        """An odd number for each place of a piece, so that a sum of products tells where each weight stands.

        A piece is what is summed at a time: on a GPU a chunk, else what fits into the processor's cache.
        """
        length = CHUNK_LENGTH if self.is_gpu else 1 << 16
        return self.torch.arange(1, 2 * length, 2, dtype=self.torch.int64, device=self.name)


class WeightsFile:
    """The weights on disk, in chunks. Further chunks of a larger model are those of the file with a number added."""

    def __init__(self, device: Device, options: argparse.Namespace) -> None:
        """Writes the file if it is not there."""
        self._device = device
        self._chunks = max(1, min(options.weights_mib, options.file_mib) // CHUNK_MIB)
        self._path = Path(options.model) / f"weights-{options.seed}-{self._chunks}.bin"
        if not self._path.exists():
            self._write(options.seed)

    def _write(self, seed: int) -> None:
        torch = self._device.torch
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(f".{os.getpid()}")
        with unfinished.open("wb") as file:
            for number in range(self._chunks):
                generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
                chunk = torch.empty(CHUNK_LENGTH, dtype=torch.int64).random_(generator=generator)
                file.write(bytes_of(chunk))
        unfinished.replace(self._path)

    def read_into(self, chunks: list[Any]) -> None:
        """Fill the model's chunks."""
        staging = self._device.pinned(CHUNK_LENGTH) if self._device.is_gpu else None
        with self._path.open("rb", buffering=0) as file:
            for number, chunk in enumerate(chunks):
                file.seek(number % self._chunks * CHUNK_BYTES)
                read_whole(file, bytes_of(chunk if staging is None else staging))
                if staging is not None:
                    chunk.copy_(staging)
                if repeats := number // self._chunks:
                    chunk.add_(repeats)
        self._device.finish()


def read_whole(file: Any, buffer: Any) -> None:
    """Fill the buffer; a single read may end early."""
    view = memoryview(buffer).cast("B")
    while view:
        count = file.readinto(view)
        if not count:
            raise EOFError(f"{file.name} is too short")
        view = view[count:]


class OffloadedWeights:
    """Weights outside of the GPU: in pinned host memory, or without a GPU in a file."""

    def __init__(self, device: Device, chunks: list[Any]) -> None:
        self._device = device
        self._copies: list[Any] = []
        self._file = Path(os.environ.get("TMPDIR", "/tmp")) / f"offloaded-{os.getpid()}.bin"
        if device.is_gpu:
            self._copies = [device.pinned(CHUNK_LENGTH).copy_(chunk, non_blocking=True) for chunk in chunks]
            device.finish()
        else:
            with self._file.open("wb") as file:
                for chunk in chunks:
                    file.write(bytes_of(chunk))

    def restore_into(self, chunks: list[Any]) -> None:
        """Fill the model's chunks, and let the copies go."""
        if self._device.is_gpu:
            for chunk, copy in zip(chunks, self._copies, strict=True):
                chunk.copy_(copy, non_blocking=True)
            self._device.finish()
            return
        with self._file.open("rb", buffering=0) as file:
            for chunk in chunks:
                read_whole(file, bytes_of(chunk))
        self._file.unlink()


class Memory:
    """The engine's GPU memory: what it computes with it, how it gives it up and takes it again. Every call blocks."""

    def __init__(self, device: Device, options: argparse.Namespace) -> None:
        self.device = device
        self.asleep: set[str] = set()
        self._level = 0
        self._fault: str | None = options.planted_fault
        self._count = max(1, options.weights_mib // CHUNK_MIB)
        self._file = WeightsFile(device, options)
        self._row = options.kv_cache_memory_bytes // 8 // SLOTS
        self._offloaded: OffloadedWeights | None = None
        self._kept: list[Any] = []
        self._weights: list[Any] = self._allocate_weights()
        self._kv_cache: Any = self._allocate_kv_cache()
        self.reload()

    @property
    def longest(self) -> int:
        """How many tokens a row of the KV cache has room for."""
        return int(self._row) - 1

    def _allocate_weights(self) -> list[Any]:
        return [self.device.empty(CHUNK_LENGTH) for _ in range(self._count)]

    def _allocate_kv_cache(self) -> Any:
        return self.device.empty(SLOTS * self._row).view(SLOTS, self._row).zero_()

    def sleep(self, level: int) -> None:
        """Give up everything; level 1 keeps a copy of the weights on the host."""
        self._level = level
        self.asleep = set(TAGS)
        if level == 1:
            self._offloaded = OffloadedWeights(self.device, self._weights)
        if self._fault == KEEP_ALL:
            self._kept = [*self._weights, self._kv_cache]
        elif self._fault == KEEP_HALF:
            self._kept = self._weights[: len(self._weights) // 2]
        self._weights, self._kv_cache = [], None
        self.device.give_back()

    def wake(self, tags: set[str]) -> None:
        """Take the memory of these tags again; after level 2 the weights are garbage until ``reload``."""
        self._kept = []
        if WEIGHTS in tags & self.asleep:
            self._weights = self._allocate_weights()
            if self._offloaded is not None:
                self._offloaded.restore_into(self._weights)
                self._offloaded = None
                self._spoil_if_planted()
            else:
                for chunk in self._weights:
                    chunk.fill_(GARBAGE)
        if KV_CACHE in tags & self.asleep:
            self._kv_cache = self._allocate_kv_cache()
        self.asleep -= tags
        self.device.finish()

    def reload(self) -> None:
        """Read the weights from the disk."""
        self._file.read_into(self._weights)
        if self._level == 2:
            self._spoil_if_planted()

    def _spoil_if_planted(self) -> None:
        if self._fault == CORRUPT:
            self._weights[len(self._weights) // 2][CHUNK_LENGTH // 3] += 1

    def checksum(self) -> int:
        """Of every weight and its place: a sum modulo 2**64, exact in whatever order the GPU adds."""
        torch, positions = self.device.torch, self.device.positions()
        product = torch.empty_like(positions)
        pieces = (piece for chunk in self._weights for piece in chunk.split(len(positions)))
        sums = torch.stack([torch.mul(piece, positions, out=product).sum() for piece in pieces])
        total = 0
        for part in sums.tolist():
            total = (total * 31 + part) % MODULUS
        return total

    def prompt_sum(self, prompt: bytes) -> int:
        """The same of a prompt's bytes."""
        torch = self.device.torch
        values = torch.tensor(list(prompt) or [0], dtype=torch.int64, device=self.device.name)
        places = torch.arange(1, 2 * len(values), 2, dtype=torch.int64, device=self.device.name)
        return int((values * places).sum().item())

    def begin(self, slot: int, prompt_sum: int) -> None:
        """Write what stands for the prompt into the first place of a row."""
        self._kv_cache[slot, 0] = prompt_sum + self._weights[0][0]

    def append(self, slot: int, place: int, token: int) -> None:
        """Write a token's entry behind those of the tokens before it."""
        chunk = self._weights[place * 7919 % len(self._weights)]
        row = self._kv_cache[slot]
        row[place + 1] = row[place] * MULTIPLIER + chunk[place * 104729 % CHUNK_LENGTH] + token

    def token_after(self, slot: int, place: int) -> int:
        """The token that the row's entry leads to."""
        return int(self._kv_cache[slot, place].item()) >> 33 & 0xFFFFF


@dataclass(eq=False)
class Sequence:
    """One request inside the engine."""

    slot: int
    prompt: bytes
    prompt_sum: int = 0
    tokens: list[int] = field(default_factory=list)
    cached_in: int | None = None
    """Of which KV cache it has a row; there is a new one after each sleep."""
    aborted: bool = False


class Engine:
    """Requests, pauses and sleep, on one event loop; what takes long runs in a thread, so that /health goes on."""

    def __init__(self, memory: Memory, token_seconds: float) -> None:
        self.memory = memory
        self.paused = False
        self._token_seconds = token_seconds
        self._slots: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(SLOTS):
            self._slots.put_nowait(slot)
        self._running: set[Sequence] = set()
        self._scheduled = asyncio.Event()
        self._scheduled.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._device_lock = asyncio.Lock()
        self._cache_number = 0

    @property
    def is_sleeping(self) -> bool:
        """As vLLM says it: asleep in part or in whole, or merely paused."""
        return self.paused or bool(self.memory.asleep)

    async def generate(self, prompt: str, limit: int) -> AsyncIterator[str]:
        """The pieces of an answer; fewer than ``limit`` if it is aborted."""
        slot = await self._slots.get()
        sequence = Sequence(slot, prompt.encode())
        self._running.add(sequence)
        self._idle.clear()
        try:
            for number in range(limit):
                if number and self._token_seconds:
                    await asyncio.sleep(self._token_seconds)
                is_checksum = number in (0, limit - 1)
                async with self._turn(sequence):
                    if sequence.aborted:
                        return
                    piece = await asyncio.to_thread(self._compute, sequence, is_checksum=is_checksum)
                yield piece
        finally:
            self._running.discard(sequence)
            self._slots.put_nowait(slot)
            if not self._running:
                self._idle.set()

    @asynccontextmanager
    async def _turn(self, sequence: Sequence) -> AsyncIterator[None]:
        """The device, when the scheduler lets the request run."""
        while True:
            if not sequence.aborted:
                await self._scheduled.wait()
            async with self._device_lock:
                if sequence.aborted or not self.paused:
                    yield
                    return

    def _compute(self, sequence: Sequence, *, is_checksum: bool) -> str:
        memory = self.memory
        if memory.asleep:
            die("CUDA error: an illegal memory access was encountered")
        if sequence.cached_in != self._cache_number:
            sequence.prompt_sum = memory.prompt_sum(sequence.prompt)
            memory.begin(sequence.slot, sequence.prompt_sum)
            for place, token in enumerate(sequence.tokens):
                memory.append(sequence.slot, place, token)
            sequence.cached_in = self._cache_number
        if is_checksum:
            return f"{(memory.checksum() * 31 + sequence.prompt_sum) % MODULUS:016x} "
        place = len(sequence.tokens)
        token = memory.token_after(sequence.slot, place)
        memory.append(sequence.slot, place, token)
        sequence.tokens.append(token)
        return f"{token:x} "

    async def pause(self, mode: str) -> None:
        """Stop scheduling; ``mode`` is what becomes of requests: abort or keep. (vLLM also has wait.)"""
        if mode not in ("abort", "keep"):
            raise Refused(400, f"mode={mode} is not implemented here")
        self.paused = True
        self._scheduled.clear()
        if mode == "abort":
            for sequence in self._running:
                sequence.aborted = True
            self._scheduled.set()
            await self._idle.wait()
            self._scheduled.clear()

    def resume(self) -> None:
        """Schedule again."""
        self.paused = False
        self._scheduled.set()

    async def sleep(self, level: int, mode: str) -> None:
        """Returns when the memory is free."""
        await self.pause(mode)
        if level and not self.memory.asleep:
            await self._on_device(lambda: self.memory.sleep(level), f"fall asleep at level {level}")
            self._cache_number += 1

    async def wake(self, tags: set[str]) -> None:
        """Wake what the tags name, all without any. The last one makes the scheduler go on."""
        await self._on_device(lambda: self.memory.wake(tags or set(TAGS)), f"wake up tags {sorted(tags)}")
        if not self.memory.asleep:
            self.resume()

    async def reload(self) -> None:
        """Read the weights from the disk."""
        if WEIGHTS in self.memory.asleep:
            die("CUDA error: an illegal memory access was encountered")
        await self._on_device(self.memory.reload, "reload the weights")

    async def _on_device(self, work: Callable[[], None], what: str) -> None:
        async with self._device_lock:
            began_at = time.monotonic()
            await asyncio.to_thread(work)
            say(f"It took {time.monotonic() - began_at:.6f} seconds to {what}.")


def die(reason: str) -> None:
    """End the engine as a fatal error of its GPU does."""
    say(f"ERROR EngineCore encountered a fatal error: {reason}")
    os._exit(1)


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(message)


@dataclass(frozen=True)
class HttpRequest:
    """One request, read to its end."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes

    @property
    def document(self) -> Any:
        """The JSON body; raises Refused."""
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise Refused(400, str(error)) from error


class HttpServer:
    """HTTP/1.1 with keep-alive, as much of it as llmux uses."""

    def __init__(self, engine: Engine, names: list[str], max_model_length: int) -> None:
        self._engine = engine
        self._names = names
        self._max_model_length = min(max_model_length, engine.memory.longest)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the client closes it."""
        try:
            while (request := await read_request(reader)) is not None:
                await self._answer(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: HttpRequest, writer: asyncio.StreamWriter) -> None:
        try:
            if request.path in ("/v1/completions", "/v1/chat/completions") and request.method == "POST":
                await self._generate(request, writer)
                return
            status, document = 200, await self._call(request)
        except Refused as refusal:
            status, document = refusal.status, failure(refusal.message, refusal.status)
        except ConnectionError:
            raise
        except Exception as error:  # whatever PyTorch raises: vLLM answers 500, too
            traceback.print_exc()
            status, document = 500, failure(f"{type(error).__name__}: {error}", 500)
        await send(writer, status, document)

    async def _call(self, request: HttpRequest) -> Any:
        engine = self._engine
        match request.method, request.path:
            case "GET", "/health":
                return None
            case "GET", "/version":
                return {"version": "gpu-check"}
            case "GET", "/v1/models":
                length = self._max_model_length
                return {"object": "list", "data": [{"id": name, "max_model_len": length} for name in self._names]}
            case "GET", "/is_sleeping":
                return {"is_sleeping": engine.is_sleeping}
            case "GET", "/is_paused":
                return {"is_paused": engine.paused}
            case "POST", "/reset_prefix_cache":
                return {"success": True}
            case "POST", _:
                return await self._control(request)
            case _:
                raise Refused(404, "Not Found")

    async def _control(self, request: HttpRequest) -> Any:
        engine = self._engine
        mode = request.query.get("mode", ["abort"])[0]
        match request.path:
            case "/sleep":
                level = int(request.query.get("level", ["1"])[0])
                await engine.sleep(level, mode)
                return {"status": "sleeping", "level": level}
            case "/wake_up":
                tags = set(request.query.get("tags", []))
                await engine.wake(tags)
                return {"status": "sleeping" if engine.is_sleeping else "awake", "tags": sorted(tags) or None}
            case "/pause":
                await engine.pause(mode)
                return {"status": "paused"}
            case "/resume":
                engine.resume()
                return {"status": "resumed"}
            case "/collective_rpc":
                method = request.document.get("method")
                if method not in RPC_METHODS:
                    raise Refused(500, f"'Worker' object has no attribute '{method}'")
                if method == "reload_weights":
                    await engine.reload()
                return {"results": [None]}
            case _:
                raise Refused(404, "Not Found")

    async def _generate(self, request: HttpRequest, writer: asyncio.StreamWriter) -> None:
        document = request.document
        is_chat = request.path.startswith("/v1/chat")
        answer = Answer(document.get("model", self._names[0]), is_chat=is_chat)
        limit = min(document.get("max_tokens") or document.get("max_completion_tokens") or 16, self._max_model_length)
        pieces = self._engine.generate(json.dumps(document.get("messages" if is_chat else "prompt")), limit)
        if not document.get("stream"):
            text = "".join([piece async for piece in pieces])
            await send(writer, 200, answer.whole(text, len(text.split())))
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        count = 0
        async for piece in pieces:
            count += 1
            await send_event(writer, json.dumps(answer.part(piece, is_last=count == limit)))
        await send_event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


@dataclass(frozen=True)
class Answer:
    """The JSON of one answer, of chats or completions."""

    model: str
    is_chat: bool

    def whole(self, text: str, count: int) -> dict[str, Any]:
        """The document of an answer that is not streamed."""
        said = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
        kind = "chat.completion" if self.is_chat else "text_completion"
        return self._document(kind, {**said, "finish_reason": "length"}) | {"usage": usage}

    def part(self, text: str, *, is_last: bool) -> dict[str, Any]:
        """The document of one event of a stream."""
        said = {"delta": {"content": text}} if self.is_chat else {"text": text}
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return self._document(kind, {**said, "finish_reason": "length" if is_last else None})

    def _document(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        return {"id": "gpu-check", "object": kind, "model": self.model, "choices": [{"index": 0, **choice}]}


def failure(message: str, status: int) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": "Error", "param": None, "code": status}}


async def read_request(reader: asyncio.StreamReader) -> HttpRequest | None:
    """The next request; None if the client has closed the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(fields.get("content-length", "0")))
    parts = urlsplit(target)
    return HttpRequest(method, parts.path, parse_qs(parts.query), body)


async def send(writer: asyncio.StreamWriter, status: int, document: Any) -> None:
    """Answer with a JSON document, or with an empty body for None."""
    body = b"" if document is None else json.dumps(document).encode()
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def send_event(writer: asyncio.StreamWriter, data: str) -> None:
    """One server-sent event in a chunk of its own; raises ConnectionError if the client has left."""
    if writer.is_closing():
        raise ConnectionResetError
    event = f"data: {data}\n\n".encode()
    writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
    await writer.drain()


async def serve(options: argparse.Namespace) -> None:
    """Load the model, and serve until SIGTERM."""
    ends = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ends.set)
    memory = await asyncio.to_thread(lambda: Memory(Device(options.device), options))
    engine = Engine(memory, options.token_ms / 1000)
    server = HttpServer(engine, options.served_model_name or [options.model], options.max_model_len)
    if options.uds:
        listener = await asyncio.start_unix_server(server.serve, options.uds)
    else:
        listener = await asyncio.start_server(server.serve, options.host, options.port)
    say("Application startup complete.")
    await ends.wait()
    listener.close()
    # Connections that are open, and a copy that is under way, are not waited for.
    os._exit(0)


def hold(options: argparse.Namespace) -> None:
    """Hold memory until standard input ends; each line read there is answered with what PyTorch sees."""
    device = Device(options.device)
    held = [device.empty(CHUNK_LENGTH).fill_(1) for _ in range(-(-options.mib // CHUNK_MIB))]
    device.finish()
    print(json.dumps(seen(device, len(held))), flush=True)
    for _ in sys.stdin:
        print(json.dumps(seen(device, len(held))), flush=True)


def seen(device: Device, chunks: int) -> dict[str, Any]:
    """The device's memory as this process sees it; without a GPU only its own part of it."""
    if device.is_gpu:
        free, total = device.torch.cuda.mem_get_info()
        return {"pid": os.getpid(), "held_mib": chunks * CHUNK_MIB, "free_mib": free // MIB, "total_mib": total // MIB}
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"pid": os.getpid(), "held_mib": chunks * CHUNK_MIB, "used_mib": pages * os.sysconf("SC_PAGE_SIZE") // MIB}


def facts() -> None:
    """Print what PyTorch says of this machine."""
    torch = import_module("torch")
    has_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if has_gpu else None
    document = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda, "gpu": name}
    print(json.dumps(document))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; the flags of ``serve`` that vLLM has mean what they mean there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve")
    preparer = commands.add_parser("prepare")
    for command in (server, preparer):
        command.add_argument("model")
        command.add_argument("--weights-mib", type=int, default=1024)
        command.add_argument("--file-mib", type=int, default=4096, help="the largest file; larger models repeat it")
        command.add_argument("--seed", type=int, default=1)
    server.add_argument("--served-model-name", nargs="+")
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=8000)
    server.add_argument("--uds")
    server.add_argument("--enable-sleep-mode", action="store_true")
    server.add_argument("--max-model-len", type=int, default=8192)
    server.add_argument("--max-num-seqs", type=int, default=SLOTS)
    server.add_argument("--gpu-memory-utilization", type=float)
    server.add_argument("--kv-cache-memory-bytes", type=size_in_bytes, default=256 * MIB)
    server.add_argument("--token-ms", type=float, default=0.0)
    server.add_argument("--planted-fault", choices=FAULTS)
    holder = commands.add_parser("hold")
    holder.add_argument("--mib", type=int, required=True)
    for command in (server, holder):
        command.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
        command.add_argument("--mark", default="", help="text by which the check finds its processes")
    commands.add_parser("facts")
    return parser.parse_args(arguments)


def main() -> None:
    """Run one of the commands."""
    options = parse(sys.argv[1:])
    match options.command:
        case "serve":
            asyncio.run(serve(options))
        case "prepare":
            WeightsFile(Device("cpu"), options)
        case "hold":
            hold(options)
        case _:
            facts()


if __name__ == "__main__":
    main()
