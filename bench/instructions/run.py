"""How many instructions llmux spends on a request and on a chunk, counted by valgrind: no neighbour changes them.

    python bench/instructions/run.py [--check] [--python OTHER/bin/python] [--write]

README.md says what is counted. ``--check`` fails where a count is more than 3 % off the one that is written down in
baseline.json for such a Python; ``--write`` writes the counts down.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.conditions import build_name, describe_machine, describe_python

HERE = Path(__file__).parent
COUNTS = {"request": (640, 7040), "chunk": (6400, 32000)}
"""How many units are played by the two runs whose difference is taken; multiples of 64.

Starts differ by a million instructions: that must not be much for each unit.
"""
TOLERANCE = 0.03
LIMIT_SECONDS = 900.0
_TOTAL = re.compile(r"I\s+refs:\s+([\d,]+)")


def instructions(python: str, kind: str, count: int) -> int:
    """Of a whole process that plays so many units."""
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command += [python, str(HERE / "play.py"), kind, str(count)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    played = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    total = _TOTAL.search(played.stderr)
    if played.returncode or total is None:
        raise SystemExit(f"{kind}: valgrind ended with {played.returncode}:\n{played.stderr[-2000:]}")
    return int(total[1].replace(",", ""))


def prices(python: str, kinds: list[str]) -> dict[str, int]:
    """Instructions of one unit of each kind. As many processes play at once as there are processors."""
    played = [(kind, count) for kind in kinds for count in COUNTS[kind]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        totals = dict(zip(played, pool.map(lambda one: instructions(python, *one), played), strict=True))
    return {
        kind: round((totals[kind, more] - totals[kind, fewer]) / (more - fewer))
        for kind, (fewer, more) in COUNTS.items()
        if kind in kinds
    }


def verdict(count: int, written: int | None) -> str:
    """How a count compares with the one that is written down."""
    if written is None:
        return "(nothing is written down for this Python)"
    change = count / written - 1
    return f"({change:+.1%})" if abs(change) <= TOLERANCE else f"({change:+.1%}) CHANGED; if that is meant, --write it"


def main() -> int:
    """Print the counts; exit code 1 if ``--check`` was given and one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter whose llmux is counted")
    parser.add_argument("--only", choices=list(COUNTS), help="count only this")
    parser.add_argument("--check", action="store_true", help="fail where a count has changed")
    parser.add_argument("--write", action="store_true", help="write the counts into baseline.json")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed: apt-get install valgrind")
    print(describe_machine(), describe_python(options.python), sep="\n")
    name = build_name(options.python)
    file = HERE / "baseline.json"
    baseline = json.loads(file.read_text())
    kinds = [options.only] if options.only else list(COUNTS)
    counts = prices(options.python, kinds)
    verdicts = {kind: verdict(count, baseline.get(name, {}).get(kind)) for kind, count in counts.items()}
    for kind, count in counts.items():
        print(f"{kind:8} {count:8} instructions  {verdicts[kind]}")
    if options.write:
        baseline[name] = baseline.get(name, {}) | counts
        file.write_text(json.dumps(baseline, indent=2, sort_keys=True) + "\n")
    return int(options.check and any("CHANGED" in one for one in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
