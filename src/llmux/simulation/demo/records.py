"""What the demo's clients want, and what became of it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """How a client asks."""

    CHAT_STREAM = "streamed chat"
    CHAT = "plain chat"
    COMPLETION = "plain completion"


class Ending(StrEnum):
    """How a request ended, seen from the client."""

    ANSWERED = "answered"
    """Completely, and with the text that the model gives to this prompt."""
    LEFT = "left"
    """The client went away on purpose."""
    CUT_SHORT = "cut short"
    """The demo was interrupted."""
    LOST = "lost"
    """No answer, an error, or an incomplete answer."""
    WRONG = "wrong"
    """A complete answer with another text: another model's, another prompt's, or garbage."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to make. ``leaves_after_seconds`` is the client's patience, if it has little on purpose."""

    at_seconds: float
    model: str
    kind: Kind
    prompt: str
    max_tokens: int
    leaves_after_seconds: float | None = None

    @property
    def path(self) -> str:
        """Where it is sent."""
        return "/v1/completions" if self.kind is Kind.COMPLETION else "/v1/chat/completions"

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        shared = {"model": self.model, "max_tokens": self.max_tokens}
        if self.kind is Kind.COMPLETION:
            return shared | {"prompt": self.prompt}
        messages = [{"role": "user", "content": self.prompt}]
        return shared | {"messages": messages, "stream": self.kind is Kind.CHAT_STREAM}


@dataclass(frozen=True, slots=True)
class Record:
    """One request that has ended. ``wait_seconds`` is how long llmux held it, as far as the client heard."""

    call: Call
    ending: Ending
    wait_seconds: float | None = None
    problem: str = ""
