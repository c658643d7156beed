"""The benches, which are seldom run: they must not fall behind the code that they use."""

import asyncio
import json
import sys
from itertools import pairwise
from pathlib import Path

from tests.support.simulated_engine import launched, ready_port

BENCH = Path(__file__).parents[2] / "bench"
IMPORT = """
import runpy, sys
for path in sys.argv[1:]:
    sys.path[0] = path.rpartition("/")[0]
    runpy.run_path(path)
    print(path)
"""


async def test_every_module_can_be_imported() -> None:
    paths = [str(path) for path in sorted(BENCH.rglob("*.py"))]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        IMPORT,
        *paths,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert output.decode().split() == paths, errors.decode()
    assert len(paths) > 10


async def test_the_stamping_engine_says_when_each_token_was_made() -> None:
    flags = ("serve", "m", "--port", "0", "--latency-ms", "0", "--token-ms", "1")
    async with launched(*flags, program=[str(BENCH / "floods/stamping_engine.py")]) as engine:
        engine.port = await ready_port(engine)
        status, events = await engine.ask(stream=True, max_tokens=4)
    assert status == 200
    lines = [line.removeprefix("data: ") for line in events.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    tokens = [chunk for chunk in chunks if chunk["choices"][0]["delta"].get("content")]
    assert len(tokens) == 4
    assert all(first["stamp"] < second["stamp"] for first, second in pairwise(tokens))
