"""The simulated engine, whose every streamed token says when it was produced: ``"stamp"``, in monotonic nanoseconds."""

import time

from llmux.simulation.engine import dialects
from llmux.simulation.engine.main import main

_token = dialects.Completion.token


def _stamped(dialect: dialects.Completion, piece: str) -> bytes:
    return _token(dialect, piece).replace(b"{", b'{"stamp": %d, ' % time.monotonic_ns(), 1)


if __name__ == "__main__":
    dialects.Completion.token = _stamped  # type: ignore[method-assign]
    main()
