"""criu: whether it works on this machine, its command lines, and the cause of a failure in its log."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llmux.errors import CriuUnusable

OLDEST = (4, 2)
"""Older versions cannot dump TCP sockets on Linux 6.16 and later, which refuses SO_PASSCRED on them."""
CHECK_LIMIT_SECONDS = 30.0
"""``criu check`` takes well under a second."""
STATUS = Path("/proc/self/status")
GHOST_LIMIT = "512M"
"""Open files that are already deleted go into the image up to this size; criu's default is 1 MiB."""
CAP_SYS_ADMIN = 21
CAP_CHECKPOINT_RESTORE = 40
"""Bits of the effective capabilities, from linux/capability.h."""

SHARED_OPTIONS = (
    "-v4",  # a log that names the cause of a failure; no measurable cost
    "--shell-job",
    "--ext-unix-sk",
    "--tcp-established",
    "--file-locks",  # an engine that holds a lock (JIT caches) cannot be dumped without it
    "--enable-external-masters",  # for the mounts of GPU container runtimes
    "--manage-cgroups=ignore",  # the engine stays in llmux's cgroup
)


NOISE = re.compile(r"RLIMIT_NOFILE")
"""Logged as an error without CAP_SYS_RESOURCE, and harmless."""
CONSEQUENCES = re.compile(
    r"Dumping FAILED|Restoring FAILED|Can't open vma|Unable to open fd=|exited, status=|killed by signal"
    r"|Collect mappings|Dump files|bfd: Error"
)
"""Errors that follow from another one, which is logged before or after."""
LINE_PREFIX = re.compile(r"^\([\d.]+\)\s*(\d+:\s*)?")
"""Time and pid."""
TAIL_CHARACTERS = 300


class NetworkLock(StrEnum):
    """How criu drops the packets of established connections while their process does not exist.

    Dumps took 0.8–1.0 s with nftables, which needs no program, 0.9–1.5 s with iptables, which needs its own,
    and 0.7–0.8 s with skip, which drops nothing.
    """

    NFTABLES = "nftables"
    IPTABLES = "iptables"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Criu:
    """A criu that passed the checks on this machine."""

    program: str
    version: str
    network_lock: NetworkLock
    plugin_directory: Path | None = None
    unprivileged: bool = False

    def dump_command(self, pid: int, images: Path) -> tuple[str, ...]:
        """Dump the process and its descendants into the directory; on success they are killed."""
        return (
            *self._begin("dump", images),
            *("--tree", str(pid), "--link-remap", "--ghost-limit", GHOST_LIMIT),
        )

    def restore_command(self, images: Path) -> tuple[str, ...]:
        """Restore the tree with its root as a child of criu's parent. The caller appends the pipes to inherit."""
        return (*self._begin("restore", images), "--restore-detached", "--restore-sibling")

    def _begin(self, verb: str, images: Path) -> tuple[str, ...]:
        # A plugin directory that does not exist makes criu fail.
        has_plugins = self.plugin_directory is not None and self.plugin_directory.is_dir()
        return (
            *(self.program, verb, "--images-dir", str(images), "--log-file", f"{verb}.log"),
            *SHARED_OPTIONS,
            *("--network-lock", self.network_lock.value),
            *(("-L", str(self.plugin_directory)) if has_plugins else ()),
            *(("--unprivileged",) if self.unprivileged else ()),
        )


def inspect_criu(path: str, plugin_directory: Path | None) -> Criu:
    """Check that criu exists, is new enough and has the rights it needs; raises CriuUnusable."""
    program = shutil.which(path)
    if program is None:
        raise CriuUnusable(
            f"the program {path!r} was not found: install criu {_dotted(OLDEST)} or set checkpoint.criu_path"
        )
    version = _read_version(program)
    _check_privileges()
    check = _run(program, "check")
    if check.returncode != 0:
        raise CriuUnusable(f"'criu check' says: {find_reason(check.stderr)}")
    return Criu(program, version, _choose_lock(program), plugin_directory, unprivileged=os.geteuid() != 0)


def _read_version(program: str) -> str:
    output = _run(program, "--version").stdout
    found = re.search(r"^Version:\s*(\d+(?:\.\d+)+)", output, re.MULTILINE)
    if found is None:
        raise CriuUnusable(f"{program} does not tell its version: is it criu?")
    version = found[1]
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise CriuUnusable(
            f"{program} is version {version}, and versions before {_dotted(OLDEST)} cannot dump TCP sockets on newer "
            "kernels: install a newer one"
        )
    return version


def _check_privileges() -> None:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", STATUS.read_text(), re.MULTILINE)
    capabilities = int(found[1], 16) if found else 0
    if not capabilities & (1 << CAP_SYS_ADMIN | 1 << CAP_CHECKPOINT_RESTORE):
        raise CriuUnusable(
            "llmux has neither CAP_SYS_ADMIN nor CAP_CHECKPOINT_RESTORE: run it as root, or with these as ambient "
            "capabilities (in a container: privileged)"
        )


def _choose_lock(program: str) -> NetworkLock:
    if _run(program, "check", "--feature", "network_lock_nftables").returncode == 0:
        return NetworkLock.NFTABLES
    return NetworkLock.IPTABLES if shutil.which("iptables") else NetworkLock.SKIP


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CHECK_LIMIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CriuUnusable(f"{command[0]} could not be run: {error}") from error


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def find_error(log: str) -> str | None:
    """The first logged error that is a cause, else the first of all; None if there is none."""
    errors = [line for line in log.splitlines() if "Error (" in line and not NOISE.search(line)]
    causes = [line for line in errors if not CONSEQUENCES.search(line)] or errors
    return LINE_PREFIX.sub("", causes[0]).strip() if causes else None


def find_reason(log: str) -> str:
    """The error, or the end of the log if it has none."""
    return find_error(log) or log.strip()[-TAIL_CHARACTERS:] or "criu said nothing"


def read_error(log: Path) -> str | None:
    """The error in a log file; None if there is none, or no file."""
    try:
        return find_error(log.read_text(errors="replace"))
    except OSError:
        return None
