"""The parent of one engine: starts it, relays its output, tells of its end, and ends its whole tree.

Run as ``python -I -S DIRECTORY_OF_THIS_PACKAGE DESCRIPTOR``; the descriptor is one end of a Unix socket pair, both
directions carry one JSON object a line. Standard library only, nothing of llmux beyond this folder: one such process
lives beside every engine, so it is kept small, and it has to outlive the llmux that started it by the time it takes
to clean up.

Commands: ``start`` (argv, env, cwd, temporary_directory, block_io_uring), ``signal`` (signal), ``stop``
(terminate_seconds, leftover_seconds), ``kill``, ``dump`` (argv, timeout_seconds), ``restore`` (argv, timeout_seconds,
pid, pipes, temporary_directory), ``break_off``, ``stay``.
Events: ``started`` (pid, pipes), ``spawn_failed`` (reason), ``output`` (stream, lines), ``dropped`` (lines), ``exited``
(status), ``gone``, ``refused`` (reason), ``failed`` (reason), ``dumped``, ``dump_failed`` and ``restore_failed``
(status, reason), ``stays``.
The socket's end is an order too: kill everything, remove the temporary directory, leave. After ``stay`` it is not: the
engine runs on, its output goes nowhere, and SIGTERM to the shim stops it as ``stop`` does.

criu runs as a child of the shim, so that what it restores (with ``--restore-sibling``) is the shim's child as well, and
everything holds for a restored engine that holds for a started one. ``pipes`` are the inodes of the engine's stdout and
stderr: by them criu recognises, in the image, what our new pipes stand in for. After ``dumped`` nothing of the tree is
left but its temporary directory, for llmux to put into the image until it closes the socket.
"""
