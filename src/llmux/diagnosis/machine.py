"""The host: kernel, limits, memory, clock."""

import ctypes
import math
import os
import platform
import posixpath
import re
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import psutil

from llmux.config.settings import Settings
from llmux.core.eviction import Eviction, Process, Weights
from llmux.diagnosis.findings import Finding, error, ok, unknown, warning
from llmux.hosts.local import size_mib

MIB = 1 << 20
GIB = 1 << 30
LEAST_KERNEL = (5, 9)
"""criu restores processes with their own ids by clone3's set_tid (5.5), without all rights by CAP_CHECKPOINT_RESTORE
(5.9)."""
FEWEST_FILES = 4096
"""Some 1,700 clients: each may need two connections, and 512 files are for everything else."""
FEWEST_PIDS = 2048
"""One engine had 73 threads on two cores; they grow with the cores, and with the models that sleep."""
FEWEST_PROCESS_IDS = 65_536
"""Linux's default without many cores is 32,768, which a busy machine has used up within hours: then the ids of a dumped
engine have other owners, and it cannot be restored."""
CONTROL_GROUPS = Path("/sys/fs/cgroup")
LEAST_SHM_BYTES = 1 * GIB
"""Containers have 64 MiB by default: too little for NCCL and for the queues between an engine's processes."""
SHM = Path("/dev/shm")
UNLIMITED_BYTES = 1 << 60
"""Control groups say a number of this size where there is no limit."""
TIME_ERROR = 5
"""What adjtimex returns while nothing keeps the clock right, from linux/timex.h."""
EARLIEST_YEAR = 2025


@dataclass(frozen=True, slots=True)
class Host:
    """What is known of the host. None stands for what cannot be read."""

    kernel: str
    open_files: int
    """The hard limit, up to which llmux raises its own."""
    pids: int | None
    """How many processes and threads the container may have; None without a limit."""
    process_ids: int | None
    """The kernel's highest process id, from where they begin again."""
    memory_bytes: int
    """Of the machine, or of the container if that has less."""
    available_bytes: int
    container_limit_bytes: int | None
    shm_bytes: int | None
    seccomp: bool
    """Whether a filter forbids some system calls."""
    year: int
    clock_is_kept: bool | None
    """Whether something like NTP keeps the clock right."""


def read_host() -> Host:
    """Look at this host."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory = psutil.virtual_memory()
    limit = read_limit("memory.max", "memory/memory.limit_in_bytes")
    limit = None if limit is None or limit >= min(UNLIMITED_BYTES, memory.total) else limit
    status = Path("/proc/self/status").read_text(errors="replace")
    return Host(
        kernel=platform.release(),
        open_files=1 << 30 if files == resource.RLIM_INFINITY else files,
        pids=read_limit("pids.max", "pids/pids.max"),
        process_ids=_read_number(Path("/proc/sys/kernel/pid_max")),
        memory_bytes=limit or memory.total,
        available_bytes=min(memory.available, limit or memory.available),
        container_limit_bytes=limit,
        shm_bytes=_size_of(SHM),
        seccomp=re.search(r"^Seccomp:\s*2", status, re.MULTILINE) is not None,
        year=time.localtime().tm_year,
        clock_is_kept=_clock_is_kept(),
    )


def check_host(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Whether the host can do what is configured."""
    yield _kernel(host)
    yield _files(host)
    yield _pids(host)
    yield from _process_ids(host, settings)
    yield _system_calls(host, settings)
    yield _clock(host)
    yield _shared_memory(host, settings)
    yield _memory(host, settings)


def _kernel(host: Host) -> Finding:
    numbers = tuple(map(int, re.findall(r"\d+", host.kernel)[:2]))
    if numbers < LEAST_KERNEL:
        return warning(
            "kernel", f"Linux {host.kernel}", "checkpoints need 5.9 or later; everything else works: update the kernel"
        )
    return ok("kernel", f"Linux {host.kernel}")


def _files(host: Host) -> Finding:
    if host.open_files < FEWEST_FILES:
        remedy = "raise it: 'ulimit -Hn 65536', LimitNOFILE= of systemd, or --ulimit nofile=65536 of docker"
        return warning("open files", f"at most {host.open_files}, which limits the number of clients", remedy)
    return ok("open files", f"at most {host.open_files}")


def _pids(host: Host) -> Finding:
    if host.pids is not None and host.pids < FEWEST_PIDS:
        remedy = "raise it: --pids-limit of docker, TasksMax= of systemd"
        return warning("processes", f"at most {host.pids} processes and threads in this control group", remedy)
    return ok("processes", "no limit that matters" if host.pids is None else f"at most {host.pids}")


def _process_ids(host: Host, settings: Settings | None) -> Iterator[Finding]:
    if settings is None or not settings.needs_criu or host.process_ids is None:
        return
    found = f"up to {host.process_ids}"
    if host.process_ids < FEWEST_PROCESS_IDS:
        found = f"{found}: those of a dumped engine may have other owners when it is to be restored"
        yield warning("process ids", found, "sysctl -w kernel.pid_max=4194304")
    else:
        yield ok("process ids", found)


def _system_calls(host: Host, settings: Settings | None) -> Finding:
    what = "system calls"
    if not host.seccomp:
        return ok(what, "all allowed")
    found = "a filter (seccomp) forbids some, as in a container"
    if settings is not None and settings.needs_criu:
        return warning(what, f"{found}; criu needs many", "start the container with --privileged")
    return ok(what, found)


def _clock(host: Host) -> Finding:
    if host.year < EARLIEST_YEAR:
        return error("clock", f"says that it is {host.year}: no certificate is valid then", "set it, or install chrony")
    if host.clock_is_kept is None:
        return unknown("clock", "whether it is kept right cannot be read here")
    if not host.clock_is_kept:
        remedy = "install chrony or systemd-timesyncd; certificates and object stores refuse clocks that are wrong"
        return warning("clock", "nothing keeps it right", remedy)
    return ok("clock", "is kept right")


def _shared_memory(host: Host, settings: Settings | None) -> Finding:
    what = "/dev/shm"
    if host.shm_bytes is None:
        return error(what, "does not exist: engines with several processes need it", "mount a tmpfs there")
    size = f"{host.shm_bytes / GIB:.1f} GiB"
    if host.shm_bytes >= LEAST_SHM_BYTES:
        return ok(what, size)
    remedy = "in a container: --shm-size=8g, or --ipc=host"
    several = [] if settings is None else [name for name in settings.models if _gpu_count(settings, name) > 1]
    if several:
        return error(what, f"{size}, too little for {', '.join(several)}, which run on several GPUs", remedy)
    return warning(what, f"{size}, too little for most engines with several processes", remedy)


def _memory(host: Host, settings: Settings | None) -> Finding:
    what = "host memory"
    limited = " (the container's limit)" if host.container_limit_bytes is not None else ""
    size = f"{host.memory_bytes / GIB:.1f} GiB{limited}, {host.available_bytes / GIB:.1f} available"
    if settings is None:
        return ok(what, size)
    needs = {
        name: size_mib(settings.engine_of(name).weight_files())
        for name in settings.models
        if _keeps_weights_in_host_memory(settings.eviction_of(name))
    }
    held_mib = min(sum(needs.values()), settings.host_memory_max_mib or math.inf)
    offloaded = (held_mib + settings.host_memory_reserve_mib) * MIB
    unmeasured = [name for name, mib in needs.items() if mib == 0]
    if not needs:
        return ok(what, f"{size}; no model is offloaded into it")
    wanted = f"the weights of evicted models and the reserve take {offloaded / GIB:.1f} GiB"
    if offloaded > host.memory_bytes:
        remedy = "use discard instead of offload for some models, or add memory; llmux discards what does not fit"
        return warning(what, f"{size}; {wanted}", remedy)
    if offloaded > host.available_bytes:
        return warning(what, f"{size}; {wanted}", "stop what uses it, or use discard for some models")
    if unmeasured:
        return unknown(what, f"{size}; the weights of {', '.join(unmeasured)} are not local, so their size is unknown")
    return ok(what, f"{size}; {wanted}")


def _keeps_weights_in_host_memory(eviction: Eviction) -> bool:
    """The driver, too, copies what is on the GPU into host memory when it suspends a process."""
    match eviction.process:
        case Process.KEEP_RUNNING:
            return eviction.weights is Weights.OFFLOAD
        case Process.CUDA_SUSPEND:
            return eviction.weights is not Weights.DISCARD
        case Process.CHECKPOINT | Process.STOP:
            return False
        case _:
            assert_never(eviction.process)


def _gpu_count(settings: Settings, name: str) -> int:
    try:
        return settings.engine_of(name).gpu_count
    except ValueError:
        return 1


def read_limit(name: str, old_name: str, root: Path = CONTROL_GROUPS, own: str | None = None) -> int | None:
    """The least limit of this process's control group and those above it; None if there is none, or it cannot be read.

    ``old_name``: the file in version 1 of control groups, in which only a container's own is looked at. ``own``: what
    ``/proc/self/cgroup`` says.
    """
    if own is None:
        try:
            own = Path("/proc/self/cgroup").read_text()
        except OSError:
            own = ""
    found = re.search(r"^0::(/.*)$", own, re.MULTILINE)
    # A group outside the namespace begins with "..": of those only the visible ones are read.
    group = Path(posixpath.normpath(root / (found[1].lstrip("/") if found else "")))
    groups = [one for one in (group, *group.parents) if one.is_relative_to(root)] or [root]
    limits = [_read_number(one / name) for one in groups]
    return min((limit for limit in (*limits, _read_number(root / old_name)) if limit is not None), default=None)


def _read_number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _size_of(directory: Path) -> int | None:
    try:
        stat = os.statvfs(directory)
    except OSError:
        return None
    return stat.f_blocks * stat.f_frsize


def _clock_is_kept() -> bool | None:
    # A zeroed structure asks and changes nothing; 512 bytes are more than any version of struct timex.
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR
