"""Fuzzing llmux's reading of HTTP: ``python -m tests.fuzz TARGET|all [--seconds N | --runs N] [--corpus DIRECTORY]``.

Needs atheris (the extra ``fuzz``). A fault does not end the run: the first input of each kind is written to the
directory of findings, and the exit code is 1. ``--replay FILE`` runs one input without atheris and says how long its
slowest turn of the loop took.

An input is slow where a turn of the loop takes more than SLOW_SECONDS of CPU: that long, no other client is served.
Instrumented code is several times slower, so a suspect is replayed without instruments, and the quickest of three
replays counts.
"""

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

SLOW_SECONDS = 0.05
REPLAYS = 3
SUSPECTS_MAX = 20
"""Of one kind: replaying more of them would cost more than it shows."""
NAMES = ("request", "chunked", "answer", "model", "parsers", "repeated")
MAX_BYTES = {"parsers": 1024, "repeated": 256}
DEFAULT_MAX_BYTES = 8192
EXECUTIONS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
GRACE_SECONDS = 60.0
"""How much longer than asked for a run may take before it counts as hung."""


class Findings:
    """The faults found so far, the first input of each kind."""

    def __init__(self, target: str, directory: Path) -> None:
        self._target = target
        self._directory = directory
        self._known: set[str] = set()
        self._suspects: Counter[str] = Counter()

    def add(self, data: bytes, kind: str, detail: str) -> None:
        """Keep an input, unless one of its kind has been kept."""
        if kind in self._known:
            return
        self._known.add(kind)
        name = f"{self._target}-{sha256(kind.encode()).hexdigest()[:10]}"
        (self._directory / name).write_bytes(data)
        (self._directory / f"{name}.json").write_text(json.dumps({"kind": kind, "input": repr(data), "detail": detail}))

    def suspect_slow(self, data: bytes, place: str) -> None:
        """Replay an input that was slow under instruments; one that stays slow is a fault."""
        kind = f"slow: {place}"
        if kind in self._known or self._suspects[kind] == SUSPECTS_MAX:
            return
        self._suspects[kind] += 1
        file = self._directory / f"{self._target}-suspect"
        file.write_bytes(data)
        took = min(_replayed_seconds(self._target, file) for _ in range(REPLAYS))
        file.unlink()
        if took > SLOW_SECONDS:
            self.add(data, kind, f"{took * 1000:.0f} ms of CPU in one turn")


def _replayed_seconds(target: str, file: Path) -> float:
    command = [sys.executable, "-m", "tests.fuzz", target, "--replay", str(file), "--quiet"]
    output = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return float(output) if output else 0.0


def _kind_of(error: BaseException) -> str:
    """What kind of fault an exception is: where in llmux it was raised."""
    kind = getattr(error, "kind", None)
    if kind is not None:
        return str(kind)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/llmux/" in frame.filename] or frames
    return f"{type(error).__name__} in {Path(ours[-1].filename).name}:{ours[-1].name}"


def _watched(target: str, findings: Findings) -> Callable[[bytes], None]:
    from tests.fuzz.targets import LOOP, REPETITIONS, TARGETS

    run = TARGETS[target]

    def one(data: bytes) -> None:
        try:
            run(data)
        except Exception as error:
            findings.add(data, _kind_of(error), "".join(traceback.format_exception(error))[-3000:])
        if LOOP.slowest_turn_seconds > SLOW_SECONDS:
            place = str(REPETITIONS[data[0] % len(REPETITIONS)].before[-40:]) if target == "repeated" else target
            findings.suspect_slow(data, place)

    return one


def _fuzz(arguments: argparse.Namespace) -> None:
    """Fuzz one target in this process; atheris ends it."""
    import atheris

    with atheris.instrument_imports(include=["llmux.gateway", "python_multipart"]):
        from tests.fuzz.seeds import SEEDS, dictionary

        one = _watched(arguments.target, Findings(arguments.target, arguments.findings))
    corpus = arguments.corpus / arguments.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[arguments.target]()):
        (corpus / f"seed-{number}").write_bytes(seed)
    tokens = arguments.corpus / "tokens"
    tokens.write_text(dictionary())
    flags = [f"-dict={tokens}", f"-max_len={MAX_BYTES.get(arguments.target, DEFAULT_MAX_BYTES)}", "-timeout=60"]
    flags += [f"-runs={arguments.runs}"] if arguments.runs else [f"-max_total_time={arguments.seconds:.0f}"]
    flags += [
        "-print_final_stats=1",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={arguments.findings}/{arguments.target}-",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
    atheris.Fuzz()


def _fuzz_in_child(target: str, arguments: argparse.Namespace, seconds: float) -> int:
    """Fuzz one target; returns how many inputs were run. Raises SystemExit where the fuzzer itself died."""
    command = [sys.executable, "-m", "tests.fuzz", target, "--child", "--seconds", f"{seconds:.0f}"]
    command += ["--findings", str(arguments.findings), "--corpus", str(arguments.corpus)]
    command += ["--runs", str(arguments.runs)] if arguments.runs else []
    limit = None if arguments.runs else seconds + GRACE_SECONDS
    log = arguments.findings / f"{target}.log"
    with log.open("w") as output:
        code = subprocess.run(command, check=False, stdout=output, stderr=output, timeout=limit).returncode
    text = log.read_text(errors="replace")
    counted = EXECUTIONS.search(text)
    if code or counted is None:
        raise SystemExit(f"{target}: the fuzzer ended with code {code}:\n{text[-4000:]}")
    log.unlink()
    return int(counted[1])


def _replay(arguments: argparse.Namespace) -> int:
    from tests.fuzz.targets import LOOP, TARGETS

    failed = 0
    try:
        TARGETS[arguments.target](arguments.replay.read_bytes())
    except Exception as error:
        failed = 1
        if not arguments.quiet:
            traceback.print_exception(error)
    print(LOOP.slowest_turn_seconds if arguments.quiet else f"{LOOP.slowest_turn_seconds * 1000:.1f} ms in one turn")
    return failed


def _report(findings: Path) -> bool:
    faults = [json.loads(file.read_text()) | {"file": file.with_suffix("")} for file in sorted(findings.glob("*.json"))]
    for fault in faults:
        cause = fault["detail"].strip().splitlines()[-1][:300]
        print(f"FAULT {fault['kind']}\n  {cause}\n  input: {fault['input'][:300]}\n  kept in {fault['file']}")
    return bool(faults)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*NAMES, "all"])
    parser.add_argument("--seconds", type=float, default=120.0, help="in all, shared among the targets")
    parser.add_argument("--runs", type=int, default=0, help="instead of a time: executions of each target")
    parser.add_argument("--corpus", type=Path, help="kept and added to; a temporary one without it")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--quiet", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    logging.disable(logging.CRITICAL)
    if arguments.replay:
        return _replay(arguments)
    if arguments.child:
        _fuzz(arguments)
        return 0
    targets = NAMES if arguments.target == "all" else (arguments.target,)
    arguments.findings.mkdir(parents=True, exist_ok=True)
    if any(arguments.findings.iterdir()):
        raise SystemExit(f"{arguments.findings} is not empty: move what it holds")
    with tempfile.TemporaryDirectory(prefix="llmux-fuzz-") as temporary:
        arguments.corpus = arguments.corpus or Path(temporary)
        total = 0
        for target in targets:
            count = _fuzz_in_child(target, arguments, arguments.seconds / len(targets))
            total += count
            print(f"{target}: {count} inputs", flush=True)
    print(f"{total} inputs in all")
    failed = _report(arguments.findings)
    if not failed:
        arguments.findings.rmdir()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
