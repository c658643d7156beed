"""The simulated engine, whose every streamed token says when it was produced: ``"stamp"``, in monotonic nanoseconds."""

import time
from typing import Any

from llmux.simulation.engine import inference
from llmux.simulation.engine.main import main

_choice = inference._Task.choice  # noqa: SLF001 - replaced here for the measurement


def _stamped(task: inference._Task, content: str, finish_reason: str | None, *, streamed: bool) -> dict[str, Any]:
    made = _choice(task, content, finish_reason, streamed=streamed)
    return {"stamp": time.monotonic_ns(), **made} if streamed else made


if __name__ == "__main__":
    inference._Task.choice = _stamped  # type: ignore[method-assign]  # noqa: SLF001
    main()
