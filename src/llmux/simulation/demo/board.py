"""Everything that a display of the running demo shows."""

from dataclasses import dataclass
from enum import StrEnum

from llmux.simulation.demo.observation import Observation
from llmux.simulation.demo.traffic import Traffic
from llmux.simulation.ledger import Ledger


class Stage(StrEnum):
    """How far the demo is."""

    TRAFFIC = "clients come and go"
    LAST_ANSWERS = "the last answers"
    SERVING = "waiting for your requests"
    STOPPING = "stopping the engines"


@dataclass(slots=True)
class Board:
    """The demo at work; ``traffic`` is None when it only serves. ``seconds``: for how long clients come."""

    url: str
    observation: Observation
    ledger: Ledger
    seconds: float
    traffic: Traffic | None = None
    is_stopping: bool = False

    @property
    def elapsed_seconds(self) -> float:
        """Since the first client came."""
        return self.observation.now - self.observation.started_at

    @property
    def stage(self) -> Stage:
        """How far the demo is."""
        if self.is_stopping:
            return Stage.STOPPING
        if self.traffic is None:
            return Stage.SERVING
        return Stage.LAST_ANSWERS if self.traffic.all_sent else Stage.TRAFFIC


def curl_lines(url: str, model: str) -> tuple[str, ...]:
    """A request to try, to be pasted into a shell."""
    return (
        f"curl {url}/v1/chat/completions \\",
        "  -H 'content-type: application/json' \\",
        f"""  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hi"}}]}}'""",
    )
