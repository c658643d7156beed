"""Collect what llmux needs as wheels in one directory, for a machine without a network.

    python3 scripts/collect_wheels.py DIRECTORY [--python 3.12]

On that machine ``make gpu-check WHEELS=DIRECTORY`` installs from there. The wheels are for Linux on x86-64 and the
given version of Python (default: the one that runs this), in the versions of constraints.txt; with what builds llmux,
and without PyTorch, which is to be there already. Needs pip.
"""

import argparse
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT_MIB = 64
EXTRAS = ("cuda",)
"""Those of llmux's extras that a check on a GPU uses, where llmux has them."""
BUILD = ("editables",)
"""What hatchling needs for an editable installation, beside what pyproject.toml names."""
GLIBC_MINOR = range(17, 40)
"""manylinux tags of the versions of glibc that may be there; pip takes each tag by itself."""


def requirements() -> list[str]:
    """What is to be installed, and what builds llmux."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"], *BUILD]
    for extra in EXTRAS:
        wanted += extras.get(extra, [])
    # Their only marker is the platform, and this is for Linux.
    return [re.sub(r"\s*;\s*sys_platform == 'linux'$", "", one) for one in wanted]


def main() -> int:
    """Download, and say how much it is; exit code 1 if it is more than can travel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--python", default=".".join(platform.python_version_tuple()[:2]), help="version there")
    options = parser.parse_args()
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in reversed(GLIBC_MINOR)]
    flags = [f"--platform={name}" for name in (*platforms, "manylinux2014_x86_64", "linux_x86_64")]
    command = (
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={options.python}", *flags),
        *("--constraint", str(ROOT / "constraints.txt"), "--dest", str(options.directory), *requirements()),
    )
    if code := subprocess.run(command, check=False).returncode:
        return code
    wheels = list(options.directory.glob("*.whl"))
    mib = sum(wheel.stat().st_size for wheel in wheels) / (1 << 20)
    print(f"{len(wheels)} wheels for Python {options.python}, {mib:.1f} MiB: {options.directory}")
    if mib > LIMIT_MIB:
        print(f"these are more than {LIMIT_MIB} MiB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
