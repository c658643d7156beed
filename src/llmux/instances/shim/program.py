"""The shim's loop: commands in, events out, and every process of the tree reaped."""

import json
import os
import selectors
import signal
import time
from collections.abc import Callable
from typing import Any

from .conditions import READ_BYTES, read_available, set_own_conditions, watch_children
from .criu_run import CriuRun, inherit_options
from .outbox import Outbox
from .output_pipe import OutputPipe
from .spawn import SpawnError, spawn
from .stop_run import StopRun, run_to_its_end
from .tree import FIRST_KILL_INTERVAL_SECONDS, LAST_KILL_INTERVAL_SECONDS, end_tree, remove_directory, signal_tree

COMMAND_BYTES_MAX = 8_388_608
"""Far above the largest environment that can be given to a process."""
AFTER_DUMP_SECONDS = 5.0
"""For processes outside the image: those in it are dead when criu's dump ends."""
STAYING_STOP_SECONDS = 10.0
"""From the SIGTERM of an engine without llmux to its SIGKILL, and the same for descendants of its root."""


class Shim:
    """One engine's tree of processes, from its start until the last of them is gone."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.outbox = Outbox(descriptor)
        self.selector = selectors.DefaultSelector()
        self.pipes: list[OutputPipe] = []
        self.pipe_inodes: list[int] = []
        self.received = b""
        self.root: int | None = None
        """The engine's process until it has been reaped, so that its pid is its own."""
        self.alive = False
        """Whether any process of the tree is left."""
        self.temporary_directory: str | None = None
        self.criu: CriuRun | None = None
        self.stop_argv: list[str] = []
        """The command that ends what does not end with the tree; empty once it has been run, or where there is none."""
        self.stop_environment: dict[str, str] = {}
        self.stop_seconds = 0.0
        self.stop_run: StopRun | None = None
        self.stop_afterwards: dict[str, Any] | None = None
        """The ``stop`` that goes on when ``stop_run`` has ended."""
        self.final_event: tuple[str, dict[str, Any]] = ("gone", {})
        """The event to send when nothing of the tree is left."""
        self.kill_after: float | None = None
        """When to kill the tree, by the monotonic clock; None while it is not being stopped."""
        self.leftover_seconds = 0.0
        """For the rest of a tree that is being stopped, once its root has ended."""
        self.kill_interval_seconds = FIRST_KILL_INTERVAL_SECONDS
        self.commands: dict[str, Callable[[dict[str, Any]], None]] = {
            "start": self.start,
            "stop": self.stop,
            "kill": self.kill,
            "dump": self.dump,
            "restore": self.restore,
            "cancel_criu": self.cancel_criu,
            "stay": self.stay,
            "ping": self.ping,
        }
        self.connected = True
        self.stays = False
        """Whether the engine outlives the connection to llmux."""
        self.got_sigterm = False

    def run(self) -> None:
        """Serve until llmux closes the socket, or after ``stay`` until the engine is gone."""
        wake_reader = watch_children()
        os.set_blocking(self.descriptor, False)
        self.selector.register(wake_reader, selectors.EVENT_READ, lambda: self.reap(wake_reader))
        self.selector.register(self.descriptor, selectors.EVENT_READ)
        while self.connected or (self.stays and self.alive):
            for key, ready in self.selector.select(self._wait_seconds()):
                if key.fd != self.descriptor:
                    key.data()
                elif ready & selectors.EVENT_READ and not self.receive():
                    self._disconnect()
            now = time.monotonic()
            if self.got_sigterm:
                self.got_sigterm = False
                self.stop({"terminate_seconds": STAYING_STOP_SECONDS, "leftover_seconds": STAYING_STOP_SECONDS})
            if self.criu is not None:
                self.criu.kill_at_deadline(now)
            if self.stop_run is not None:
                self.stop_run.kill_at_deadline(now)
            if self.alive and self.kill_after is not None and now >= self.kill_after:
                self._kill_once(now)
            if not self.outbox.flush(now):
                self._disconnect()
            if self.connected:
                writing = selectors.EVENT_WRITE if self.outbox.unsent else 0
                self.selector.modify(self.descriptor, selectors.EVENT_READ | writing)

    def _disconnect(self) -> None:
        if self.connected:
            self.connected = False
            self.selector.unregister(self.descriptor)
            self.outbox.mute()

    def ping(self, command: dict[str, Any]) -> None:
        """Show that this loop runs: a shim that was stopped or hangs does not answer."""
        self.outbox.add_event("pong")

    def stay(self, command: dict[str, Any]) -> None:
        """Let the engine outlive llmux; SIGTERM to the shim, or the end of the root, then ends all of it."""
        if self.root is None or self.criu is not None or self.kill_after is not None:
            self.outbox.add_event("refused", reason="the engine does not run, or is being stopped")
            return
        self.stays = True
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self.outbox.add_event("stays")

    def _on_sigterm(self, number: int, frame: object) -> None:
        self.got_sigterm = True

    def receive(self) -> bool:
        """Carry out the commands that have arrived; returns False at the end of the socket."""
        try:
            data = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        *lines, self.received = (self.received + data).split(b"\n")
        if len(self.received) > COMMAND_BYTES_MAX:
            raise ValueError(f"llmux sent a command of more than {COMMAND_BYTES_MAX} bytes")
        for line in lines:
            command = json.loads(line)
            perform = self.commands.get(command["command"])
            if perform is None:
                self.outbox.add_event("refused", reason=f"the shim knows no command {command['command']!r}")
            else:
                perform(command)
        return bool(data)

    def start(self, command: dict[str, Any]) -> None:
        if self.alive:
            self.outbox.add_event("refused", reason="the engine has been started before")
            return
        self.temporary_directory = command.get("temporary_directory")
        try:
            if self.temporary_directory:
                os.makedirs(self.temporary_directory, mode=0o700, exist_ok=True)  # noqa: PTH103
            self.root, readers = spawn(
                command["argv"], command["env"], command.get("cwd"), command.get("block_io_uring", False)
            )
        except (OSError, SpawnError) as error:
            remove_directory(self.temporary_directory)
            self.outbox.add_event("spawn_failed", reason=printable(str(error)))
            return
        self.stop_argv = command.get("stop_argv", [])
        self.stop_environment = command["env"]
        self.stop_seconds = command.get("stop_seconds", 0.0)
        self._begin(readers)
        self._report_started()

    def dump(self, command: dict[str, Any]) -> None:
        """Let criu write the tree into an image and end it; if that fails, the engine runs on."""
        if self.root is None or self.criu is not None or self.kill_after is not None:
            self.outbox.add_event("dump_failed", status=None, reason="the engine does not run, or is being stopped")
            return
        try:
            self.criu = CriuRun("dump", command["argv"], command["timeout_seconds"])
        except OSError as error:
            self.outbox.add_event("dump_failed", status=None, reason=f"criu could not be started: {error}")

    def restore(self, command: dict[str, Any]) -> None:
        """Let criu recreate the tree from an image, with its root as our child and with our pipes."""
        if self.alive:
            self.outbox.add_event("restore_failed", status=None, reason="this shim has an engine already")
            return
        self.temporary_directory = command.get("temporary_directory")
        (out_reader, out_writer), (err_reader, err_writer) = os.pipe(), os.pipe()
        writers = (out_writer, err_writer)
        argv = [*command["argv"], *inherit_options(command["pipes"], writers)]
        self._begin((out_reader, err_reader))
        try:
            self.criu = CriuRun("restore", argv, command["timeout_seconds"], writers)
            self.criu.root = command["pid"]
        except OSError as error:
            self.final_event = ("restore_failed", {"status": None, "reason": f"criu could not be started: {error}"})
            self._tree_gone()
        finally:
            for writer in writers:
                os.close(writer)

    def cancel_criu(self, command: dict[str, Any]) -> None:
        """Kill criu: a dump or restore under way fails; one that has just succeeded is not affected."""
        if self.criu is not None:
            self.criu.kill("llmux broke it off")

    def _begin(self, readers: tuple[int, int]) -> None:
        self.alive = True
        self.kill_after = None
        self.kill_interval_seconds = FIRST_KILL_INTERVAL_SECONDS
        self.final_event = ("gone", {})
        self.pipe_inodes = [os.fstat(reader).st_ino for reader in readers]
        for stream, reader in zip(("stdout", "stderr"), readers, strict=True):
            os.set_blocking(reader, False)
            pipe = OutputPipe(stream, reader, self.outbox.add_line)
            self.pipes.append(pipe)
            self.selector.register(reader, selectors.EVENT_READ, lambda pipe=pipe: self.read(pipe))

    def _report_started(self) -> None:
        self.outbox.add_event("started", pid=self.root, pipes=self.pipe_inodes)

    def stop(self, command: dict[str, Any]) -> None:
        """SIGTERM the root, or the rest of the tree if the root has ended, and kill the tree at the deadline.

        Where there is a stop command, all of that waits for its end.
        """
        self.cancel_criu(command)
        if self.kill_after is None:
            # Of a tree that is being killed, a client that lives on for a moment may still start what is to be ended.
            self._begin_stop_command()
        if self.stop_run is not None:
            self.stop_afterwards = command
        else:
            self._terminate(command)

    def _terminate(self, command: dict[str, Any]) -> None:
        terminate_seconds = command["terminate_seconds"]
        self.leftover_seconds = command["leftover_seconds"]
        if self.root is None:
            self._signal_tree(signal.SIGTERM)
            terminate_seconds = min(terminate_seconds, self.leftover_seconds)
        else:
            attempt(os.kill, self.root, signal.SIGTERM)
        self._kill_not_later_than(time.monotonic() + terminate_seconds)

    def kill(self, command: dict[str, Any]) -> None:
        self.cancel_criu(command)
        self._kill_not_later_than(0.0)

    def _begin_stop_command(self) -> None:
        """Run the stop command if there is one that has not been run."""
        if not self.stop_argv or self.stop_run is not None or not self.alive:
            return
        try:
            self.stop_run = run = StopRun(self.stop_argv, self.stop_environment, self.stop_seconds)
        except (OSError, SpawnError) as error:
            self.stop_argv = []
            self.outbox.add_event("stop_command_ended", status=None, reason=printable(str(error)), lines=[])
            return
        for pipe in run.pipes:
            self.selector.register(pipe.descriptor, selectors.EVENT_READ, lambda pipe=pipe: self._read_stop(pipe))

    def _read_stop(self, pipe: OutputPipe) -> None:
        if self.stop_run is not None and pipe in self.stop_run.pipes and pipe.read() == 0:
            self.selector.unregister(pipe.descriptor)

    def _stop_command_ended(self, run: StopRun, status: int) -> None:
        for pipe in run.pipes:
            if pipe.descriptor in self.selector.get_map():
                self.selector.unregister(pipe.descriptor)
        run.close()
        self.stop_run, self.stop_argv = None, []
        self.outbox.add_event("stop_command_ended", status=status, reason=run.reason, lines=list(run.lines))
        if self.stop_afterwards is not None:
            self._terminate(self.stop_afterwards)

    def read(self, pipe: OutputPipe) -> None:
        if pipe in self.pipes and pipe.read() == 0:
            pipe.end_line()
            self.selector.unregister(pipe.descriptor)
            os.close(pipe.descriptor)
            self.pipes.remove(pipe)

    def reap(self, wake_reader: int) -> None:
        """Reap every child that has ended, orphans of the tree among them."""
        while read_available(wake_reader):
            pass
        try:
            while self.alive:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._child_ended(pid, os.waitstatus_to_exitcode(status))
        except ChildProcessError:
            self._tree_gone()

    def _child_ended(self, pid: int, status: int) -> None:
        if self.stop_run is not None and pid == self.stop_run.pid:
            self._stop_command_ended(self.stop_run, status)
        elif self.criu is not None and pid == self.criu.pid:
            self._criu_ended(self.criu, status)
        elif self.criu is not None and pid in (self.root, self.criu.root):
            self.root = None
            self.criu.root_status = status
        elif pid == self.root:
            self._root_exited(status)

    def _criu_ended(self, criu: CriuRun, status: int) -> None:
        self.criu = None
        match criu.verb, status:
            case "dump", 0:
                self.root = None
                self.final_event = ("dumped", {})
                self._kill_not_later_than(time.monotonic() + AFTER_DUMP_SECONDS)
            case "dump", _:
                if criu.root_status is not None:
                    self._root_exited(criu.root_status)
                self.outbox.add_event("dump_failed", status=status, reason=criu.reason)
            case _, 0:
                self.root = criu.root
                self._report_started()
                if criu.root_status is not None:
                    self._root_exited(criu.root_status)
            case _:
                self.final_event = ("restore_failed", {"status": status, "reason": criu.reason})
                self._kill_not_later_than(0.0)

    def _root_exited(self, status: int) -> None:
        self.root = None
        self._read_pipes()
        self.outbox.add_event("exited", status=status)
        if self.stays and self.kill_after is None:
            self.leftover_seconds = STAYING_STOP_SECONDS
            self.kill_after = time.monotonic() + STAYING_STOP_SECONDS
        if self.kill_after is not None:
            self._signal_tree(signal.SIGTERM)
            self._kill_not_later_than(time.monotonic() + self.leftover_seconds)

    def _tree_gone(self) -> None:
        self._begin_stop_command()
        if self.stop_run is not None:
            return
        self.alive = False
        self._read_pipes()
        for pipe in self.pipes.copy():
            self.selector.unregister(pipe.descriptor)
            os.close(pipe.descriptor)
        self.pipes.clear()
        event, facts = self.final_event
        if event != "dumped":  # its directory belongs into the image: llmux copies it, and then closes the socket
            remove_directory(self.temporary_directory)
        self.outbox.add_event(event, **facts)

    def _read_pipes(self) -> None:
        """Pass on the output in the pipes, so that an engine's last lines precede the report of its exit."""
        for pipe in self.pipes:
            pipe.drain()

    def _signal_group(self, number: int) -> None:
        if self.root is None:
            self._signal_tree(number)
        else:
            attempt(os.killpg, self.root, number)

    def _signal_tree(self, number: int) -> None:
        signal_tree(number, spared=None if self.stop_run is None else self.stop_run.pid)

    def _kill_not_later_than(self, at: float) -> None:
        self.kill_after = at if self.kill_after is None else min(self.kill_after, at)

    def _kill_once(self, now: float) -> None:
        # Both: a group cannot escape killpg by forking, and the tree includes processes that left the group.
        self._signal_group(signal.SIGKILL)
        self._signal_tree(signal.SIGKILL)
        self.kill_after = now + self.kill_interval_seconds
        self.kill_interval_seconds = min(2 * self.kill_interval_seconds, LAST_KILL_INTERVAL_SECONDS)

    def _wait_seconds(self) -> float | None:
        now = time.monotonic()
        waits = [self.outbox.wait_seconds(now) if not self.outbox.unsent else None]
        if self.alive and self.kill_after is not None:
            waits.append(max(0.0, self.kill_after - now))
        if self.criu is not None and self.criu.deadline is not None:
            waits.append(max(0.0, self.criu.deadline - now))
        if self.stop_run is not None and self.stop_run.deadline is not None:
            waits.append(max(0.0, self.stop_run.deadline - now))
        return min((wait for wait in waits if wait is not None), default=None)


def attempt(action: Callable[[int, int], None], pid: int, number: int) -> None:
    """Signal a process if permitted: an engine that changed its user must not make the shim fail."""
    try:
        action(pid, number)
    except OSError:
        return


def printable(text: str) -> str:
    """The text with characters replaced that cannot be encoded."""
    return text.encode(errors="replace").decode()


def main(descriptor: int) -> None:
    """Run a shim on this socket until it ends, and leave nothing of the tree behind."""
    os.set_inheritable(descriptor, False)
    shim = Shim(descriptor)
    try:
        set_own_conditions()
        shim.run()
    except Exception as error:
        shim.outbox.add_event("failed", reason=printable(f"{type(error).__name__}: {error}"))
        shim.outbox.flush(time.monotonic())
    end_tree()
    if shim.stop_argv:
        # Not yet run, or killed with the tree, or not known to have ended.
        run_to_its_end(shim.stop_argv, shim.stop_environment, shim.stop_seconds)
    remove_directory(shim.temporary_directory)
    os._exit(0)
