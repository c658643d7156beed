"""criu: whether it can be used here, and its command lines."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llmux.checkpoints.criu_log import find_reason
from llmux.errors import CriuUnusable

OLDEST = (4, 2)
"""The first that can dump a TCP socket on Linux 6.16 and later."""
CHECK_SECONDS = 30.0
STATUS = Path("/proc/self/status")
GHOST_LIMIT = "512M"
"""Deleted files that are still open go into the image up to this size."""
CAP_SYS_ADMIN = 21
CAP_CHECKPOINT_RESTORE = 40

SHARED_OPTIONS = (
    "-v4",
    "--shell-job",
    "--ext-unix-sk",
    "--tcp-established",
    "--file-locks",
    "--enable-external-masters",
    "--manage-cgroups=ignore",
)


class NetworkLock(StrEnum):
    """How criu keeps established connections from noticing that their process is gone."""

    NFTABLES = "nftables"
    IPTABLES = "iptables"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Criu:
    """A criu that works on this machine."""

    program: str
    version: str
    network_lock: NetworkLock
    plugin_directory: Path | None = None
    unprivileged: bool = False

    def dump_command(self, pid: int, images: Path) -> tuple[str, ...]:
        """Put the tree of the process into the directory, and end it."""
        return (
            *self._begin("dump", images),
            *("--tree", str(pid), "--link-remap", "--ghost-limit", GHOST_LIMIT),
        )

    def restore_command(self, images: Path) -> tuple[str, ...]:
        """Make the tree anew, its root a child of criu's parent; the pipes are missing yet."""
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
    """Look whether criu is there, new enough, and may do its work; raises CriuUnusable."""
    program = shutil.which(path)
    if program is None:
        raise CriuUnusable(
            f"the program {path!r} was not found: install criu {_shown(OLDEST)} or set checkpoint.criu_path"
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
            f"{program} is version {version}, and versions before {_shown(OLDEST)} cannot dump TCP sockets on newer "
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
            timeout=CHECK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CriuUnusable(f"{command[0]} could not be run: {error}") from error


def _shown(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
