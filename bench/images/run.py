"""How fast an image goes to an object store and back, beside plain copies through the same server.

Starts moto's S3 server in a process of its own, makes an image of random bytes (nothing of it can be compressed), and
copies it up and down with llmux's transfers, and a file of the same bytes with obstore alone, each in a process of its
own. obstore does it in two ways: as one object, up by its own multipart upload (16 MiB a part, eight at once) and down
by its stream; and as objects of 16 MiB, eight at once, without digests, which is as fast as the server can be. The bars
are for the ratio to the plain copy of one object, and for the growth of memory.

    python bench/images/run.py [--mib 2048] [--rounds 3] [--check]
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from llmux.checkpoints import criu, images
from llmux.checkpoints.checkpointer import Checkpointer, CriuSettings
from llmux.checkpoints.image_transfers import ImageTransfers
from llmux.checkpoints.manifest import write_manifest
from tests.support import fake_criu
from tests.support.s3_server import S3Server, s3_server
from tests.support.stored_images import FINGERPRINT, MANIFEST

MIB = 1 << 20
PART_BYTES = 16 * MIB
PARTS_AT_ONCE = 8
LEAST_RATIO = 0.8
MOST_MEMORY_MIB = 256
PLAIN = ("one object", "many objects")


def seconds_of(work: Callable[[], Any]) -> float:
    began_at = time.perf_counter()
    work()
    return time.perf_counter() - began_at


def cpu() -> float:
    """Of this process, its start included."""
    return time.process_time()


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def copy_as_llmux(direction: str, endpoint: str, bucket: str, directory: Path) -> None:
    """In a process of its own: one transfer, with its duration and the growth of this process's memory."""
    criu._check_privileges = lambda: None  # noqa: SLF001 - nothing is dumped
    checkpointer = Checkpointer(CriuSettings(fake_criu.install(directory), None, directory / "images"))
    path = images.image_path(directory / "images", "m", frozen=False)

    async def run() -> dict[str, float]:
        # As in a server that has opened its store, and asked it something.
        store = S3Server(endpoint, bucket).open()
        transfers = ImageTransfers(store, "s3://bench", checkpointer)
        await checkpointer.check()
        await store.list_folders("m")
        before = psutil.Process().memory_info().rss / MIB
        began_at = time.perf_counter()
        if direction == "up":
            await transfers.upload("m", path)
        else:
            await transfers.fetch("m", path, FINGERPRINT)
        return {"seconds": time.perf_counter() - began_at, "grown_mib": peak_mib() - before, "cpu_seconds": cpu()}

    print(json.dumps(asyncio.run(run())))


def copy_plainly(who: str, direction: str, endpoint: str, bucket: str, directory: Path) -> None:
    """In a process of its own: by obstore alone, as one object or as many."""
    import obstore
    from obstore.store import from_url

    address = S3Server(endpoint, bucket).address
    client: Any = {"allow_http": True, "timeout": timedelta(seconds=600)}
    store = from_url(address.url, config=dict(address.options), client_options=client)
    source, target = directory / "plain", directory / "plain-back"

    def put_part(at: int) -> None:
        with source.open("rb") as file:
            obstore.put(store, f"parts/{at}", os.pread(file.fileno(), PART_BYTES, at), use_multipart=False)

    def get_part(at: int) -> None:
        with target.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), obstore.get(store, f"parts/{at}").bytes(), at)

    def all_parts(work: Callable[[int], None]) -> None:
        target.touch()
        with ThreadPoolExecutor(PARTS_AT_ONCE) as threads:
            list(threads.map(work, range(0, source.stat().st_size, PART_BYTES)))

    def put_whole() -> None:
        obstore.put(store, "plain", source, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

    def get_whole() -> None:
        with target.open("wb") as file:
            for chunk in obstore.get(store, "plain").stream(min_chunk_size=PART_BYTES):
                file.write(chunk)

    works: dict[tuple[str, str], Callable[[], None]] = {
        ("one object", "up"): put_whole,
        ("one object", "down"): get_whole,
        ("many objects", "up"): lambda: all_parts(put_part),
        ("many objects", "down"): lambda: all_parts(get_part),
    }
    before = psutil.Process().memory_info().rss / MIB
    seconds = seconds_of(works[who, direction])
    print(json.dumps({"seconds": seconds, "grown_mib": peak_mib() - before, "cpu_seconds": cpu()}))


def measure(who: str, direction: str, server: S3Server, directory: Path) -> dict[str, float]:
    words = (sys.executable, __file__, "--part", who, direction, server.endpoint, server.bucket, str(directory))
    output = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def write_random(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


def run(mib: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="llmux-bench-") as name, s3_server() as server:
        directory = Path(name)
        write_random(directory / "plain", mib)
        image = images.image_path(directory / "images", "m", frozen=False)
        image.mkdir(parents=True, mode=0o700)
        os.link(directory / "plain", image / "pages-1.img")
        write_manifest(image, MANIFEST.completed(image))
        for _ in range(rounds):
            for direction, who in product(("up", "down"), (*PLAIN, "llmux")):
                if (who, direction) == ("llmux", "down"):
                    shutil.rmtree(image)
                found.setdefault(f"{who} {direction}", []).append(measure(who, direction, server, directory))
            assert subprocess.run(["cmp", str(directory / "plain"), str(image / "pages-1.img")]).returncode == 0
            (directory / "plain-back").unlink()
    return {
        "mib": mib,
        **{
            kind: {
                "mib_per_second": round(mib / min(one["seconds"] for one in each), 1),
                "grown_mib": round(max(one["grown_mib"] for one in each)),
                "cpu_seconds": round(min(one["cpu_seconds"] for one in each), 1),
            }
            for kind, each in found.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="fail if a bound is not held")
    parser.add_argument("--part", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        who, direction, endpoint, bucket, directory = arguments.part
        if who == "llmux":
            copy_as_llmux(direction, endpoint, bucket, Path(directory))
        else:
            copy_plainly(who, direction, endpoint, bucket, Path(directory))
        return
    figures = run(arguments.mib, arguments.rounds)
    is_ok = True
    for direction in ("up", "down"):
        ours = figures[f"llmux {direction}"]
        plainly = {who: figures[f"{who} {direction}"] for who in PLAIN}
        ratios = {who: ours["mib_per_second"] / one["mib_per_second"] for who, one in plainly.items()}
        is_ok &= ratios["one object"] >= LEAST_RATIO and ours["grown_mib"] < MOST_MEMORY_MIB
        for who, one in {"llmux": ours, **plainly}.items():
            print(
                f"{direction}: {who} {one['mib_per_second']} MiB/s, {one['cpu_seconds']} s of CPU, "
                f"memory grew by {one['grown_mib']} MiB"
            )
        print(f"{direction}: ratios " + ", ".join(f"{ratio:.2f} to {who}" for who, ratio in ratios.items()))
    if arguments.check and not is_ok:
        sys.exit(f"bound not held: ratio {LEAST_RATIO}, {MOST_MEMORY_MIB} MiB")


if __name__ == "__main__":
    main()
