"""The shim: the parent of one engine. It starts it, relays its output, reports its end, and ends its whole tree.

Run as ``python -I -S DIRECTORY_OF_THIS_PACKAGE DESCRIPTOR``. The descriptor is one end of a Unix socket pair that
carries one JSON object a line in both directions. Only the standard library is imported, and nothing of llmux outside
this package: there is one shim per engine, so it is kept small, and it outlives the llmux that started it for as long
as cleaning up takes.

Commands: ``start`` (argv, env, cwd, temporary_directory, block_io_uring, stop_argv,
stop_seconds), ``stop`` (terminate_seconds,
leftover_seconds), ``kill``, ``dump`` (argv, timeout_seconds), ``restore`` (argv, timeout_seconds, pid, pipes,
temporary_directory), ``cancel_criu``, ``stay``.
Events: ``started`` (pid, pipes), ``spawn_failed`` (reason), ``output`` (stream, lines), ``dropped`` (lines), ``exited``
(status), ``gone``, ``refused`` (reason), ``failed`` (reason), ``dumped``, ``dump_failed`` and ``restore_failed``
(status, reason), ``stays``, ``stop_command_ended`` (status, reason, lines).
The end of the socket is a command too: kill everything, remove the temporary directory, exit. After ``stay`` it is not:
the engine runs on, its output is discarded, and SIGTERM to the shim stops it as ``stop`` does.

criu runs as a child of the shim, so that the process it restores (with ``--restore-sibling``) is a child of the shim
too, and a restored engine is treated like a started one. ``pipes`` are the inodes of the engine's stdout and stderr, by
which criu recognises the pipes in the image that are to be replaced by new ones. After ``dumped``, only the temporary
directory of the tree is left, for llmux to copy into the image before it closes the socket.

``stop_argv`` is a command that ends what is no descendant of the shim, such as the container of a ``docker run``. It is
run once, for at most ``stop_seconds``: before the SIGTERM of ``stop``, or else when the tree is gone, whatever ended
that, the end of the socket included. ``gone`` follows it.
"""
