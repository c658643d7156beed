"""The parent of one engine: starts it, relays its output, tells of its end, and ends its whole tree.

Run as ``python -I -S DIRECTORY_OF_THIS_PACKAGE DESCRIPTOR``; the descriptor is one end of a Unix socket pair, both
directions carry one JSON object a line. Standard library only, nothing of llmux beyond this folder: one such process
lives beside every engine, so it is kept small, and it has to outlive the llmux that started it by the time it takes
to clean up.

Commands: ``start`` (argv, env, cwd, temporary_directory), ``signal`` (signal), ``stop`` (terminate_seconds,
leftover_seconds), ``kill``.
Events: ``started`` (pid), ``spawn_failed`` (reason), ``output`` (stream, lines), ``dropped`` (lines), ``exited``
(status), ``gone``, ``refused`` (reason), ``failed`` (reason).
The socket's end is an order too: kill everything, remove the temporary directory, leave.
"""
