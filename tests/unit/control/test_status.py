"""The documents of the control API, where a real server seldom shows what they must do."""

from types import SimpleNamespace
from typing import Any

from llmux.control.status import history_document
from llmux.core.eviction import STOP
from llmux.core.model import Transition
from llmux.core.states import Evicting, Failed
from llmux.errors import FailureReason

REASON = FailureReason("it ended; its last lines: boom", "it ended")


def test_a_history_tells_why_in_one_text() -> None:
    crash = Transition(5.0, "EvictDone", Evicting(1.0, STOP, crash=REASON), Failed(REASON, 9.0, refusing=True))
    operations: Any = SimpleNamespace(now=lambda: 7.0, history=lambda model: [crash])
    (chapter,) = history_document(operations, "a")["story"]
    assert (chapter["before"]["crash"], chapter["after"]["reason"]) == (REASON.text, REASON.text)
    assert chapter["after"] == {"state": "failed", "reason": REASON.text, "refusing": True}
