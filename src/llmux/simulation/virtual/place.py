"""One model's part of a virtual run: its engine, what is frozen in it, and what the model was doing when."""

from collections.abc import Sequence

from llmux.core.identifiers import Seconds
from llmux.core.model import Model
from llmux.core.states import Draining, Evicting, Serving, State, Waking
from llmux.simulation.virtual.costs import SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed, VirtualEngine
from llmux.simulation.virtual.timeline import Phase
from llmux.simulation.workload.call import TracedCall

QUESTION = -1
"""In the place of a request's number: what llmux asks an engine when it is awake."""
QUESTION_READS, QUESTION_WRITES = 6, 4
"""Its tokens."""


def question_seconds(speed: EngineSpeed) -> Seconds:
    """What asking takes where nothing is frozen, which is a part of the wake's cost."""
    return QUESTION_READS / speed.prefill + (QUESTION_WRITES - 1) / speed.decode_alone


class Place:
    """What a virtual run knows of one model."""

    __slots__ = (
        "_is_to_be_asked",
        "cost",
        "engine",
        "frozen",
        "held_back",
        "name",
        "phase",
        "phases",
        "record",
        "state",
    )

    def __init__(self, record: Model, cost: SwitchCost, speed: EngineSpeed) -> None:
        self.name = record.name
        self.record = record
        self.state: State = record.state
        """What the model's state was when it was last looked at."""
        self.engine = VirtualEngine(speed, record.spec.max_in_flight)
        self.cost = cost
        self.frozen: dict[int, int] = {}
        """How many tokens each request has yet to write that is suspended with the engine."""
        self.held_back: dict[int, bool] = {}
        """The requests of which the client gets the first token, or (true) the last one, when the wake is done."""
        self.phase = Phase.OFF
        self.phases: list[tuple[Seconds, Phase]] = []
        self._is_to_be_asked = False

    def enter(self, phase: Phase, now: Seconds) -> None:
        """Note what the model does from now on."""
        if phase is not self.phase:
            self.phase = phase
            self.phases.append((now, phase))

    def look(self, now: Seconds) -> None:
        """Note what the scheduler made of the model."""
        self.state = self.record.state
        self.enter(self._present_phase(), now)

    def _present_phase(self) -> Phase:
        match self.state:
            case Waking():
                return Phase.WAKING
            case Serving():
                return Phase.IDLE if self.engine.is_idle else Phase.SERVING
            case Draining():
                return Phase.DRAINING
            case Evicting():
                return Phase.EVICTING
            case _:
                return Phase.OFF

    def freeze(self, request: int, now: Seconds) -> None:
        """Suspend a request with the engine."""
        self.frozen[request] = self.engine.remove(request, now)

    def give_up(self, request: int, now: Seconds) -> None:
        """Forget a request before its end."""
        if self.frozen.pop(request, None) is None and self.held_back.pop(request, None) is not True:
            self.engine.remove(request, now)
            self._ask(now)

    def resume(self, calls: Sequence[TracedCall], now: Seconds) -> None:
        """Go on with what was frozen, which has to be read again with what it had written; then ask the question."""
        for request, left in self.frozen.items():
            call = calls[request]
            self.engine.admit(request, call.prompt_tokens + call.output_tokens - left, left, now)
        self.frozen.clear()
        self._is_to_be_asked = True
        self._ask(now)

    def hold_back(self, request: int, has_ended: bool, now: Seconds) -> bool:
        """Keep what the engine says while it is being woken; returns whether that is the end of the wake."""
        if request == QUESTION:
            return has_ended
        self.held_back[request] = has_ended
        if has_ended:
            self._ask(now)
        return False

    def _ask(self, now: Seconds) -> None:
        """The question waits for its place in the batch as any request."""
        if self._is_to_be_asked and self.engine.has_room:
            self._is_to_be_asked = False
            self.engine.admit(QUESTION, QUESTION_READS, QUESTION_WRITES, now)
