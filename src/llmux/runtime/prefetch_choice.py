"""Whose files are read ahead next: those of queued models, in their order, then those of predicted ones.

Apart from the reading itself, so that a simulation makes the same choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.identifiers import Seconds
from llmux.core.prediction import Demand, DemandPredictor, Prediction
from llmux.core.scheduler import Scheduler
from llmux.core.states import Asleep, Auto, Cold, Failed
from llmux.observability.prefetch_metrics import Reason

LOOK_AGAIN_SECONDS: Seconds = 60.0
"""Without any event: the hour may have changed, and with it what is predicted."""
READ_AGAIN_SECONDS: Seconds = 300.0
"""What was read ahead, or could not be, is looked at again after that, unless the model has been woken meanwhile: so
long it counts against the memory."""
PREDICTED_MAX = 3
"""Predicted models whose files are read ahead."""
LEAST_SHARE = 0.2
"""How likely a model must be the next one."""
PREDICTED_RATE_SHARE = 0.25
"""The part of the rate that predicted models get: nobody waits for them."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A model whose files are to be read now, and how it left."""

    model: str
    asleep: Eviction | None
    reason: Reason

    def rate(self, bytes_per_second_max: float) -> float:
        """Bytes a second."""
        return bytes_per_second_max * (1.0 if self.reason is Reason.QUEUED else PREDICTED_RATE_SHARE)


@dataclass(slots=True)
class Ahead:
    """What has been read ahead of a model since it was woken last."""

    reason: Reason = Reason.QUEUED
    held_bytes: float = 0
    """Of its files, what was in the page cache then."""
    again_at: Seconds = float("-inf")


class PrefetchChoice:
    """Chooses; it follows the scheduler and changes nothing in it."""

    def __init__(self, scheduler: Scheduler, ahead: Mapping[str, Ahead], *, predicts: bool) -> None:
        """``ahead``: the models that may be chosen, kept up to date by whoever reads."""
        self._scheduler = scheduler
        self._ahead = ahead
        self._predicts = predicts
        self._predictor = DemandPredictor(ahead)
        self._likeliest: Sequence[Prediction] = ()
        self._predict_again_at: Seconds = float("-inf")

    def observe(self, demand: Demand) -> None:
        """Learn what is asked for after what, and when."""
        self._predictor.observe(demand)
        self._predict_again_at = float("-inf")

    def choose(self, now: Seconds, time_of_day: Seconds) -> Goal | None:
        """Whose files are to be read now; None: nobody's. ``time_of_day`` is the same time on the clock of demands."""
        scheduler = self._scheduler
        if scheduler.is_stopping or scheduler.is_waking:
            return None
        for model in scheduler.awaiting_wake():
            if (goal := self._goal(model, Reason.QUEUED, now)) is not None:
                return goal
        if not self._predicts or not scheduler.is_settled or not isinstance(scheduler.mode, Auto):
            return None
        predictions = self._predict(now, time_of_day)
        goals = (self._goal(prediction.model, Reason.PREDICTED, now) for prediction in predictions)
        return next(filter(None, goals), None)

    def bytes_held_beside(self, goal: Goal, now: Seconds) -> float:
        """What others hold of the page cache that were read ahead lately."""
        return sum(
            ahead.held_bytes
            for model, ahead in self._ahead.items()
            # What was predicted does not stand in the way of what is wanted.
            if model != goal.model
            and ahead.again_at > now
            and (goal.reason is Reason.PREDICTED or ahead.reason is Reason.QUEUED)
        )

    def _predict(self, now: Seconds, time_of_day: Seconds) -> Sequence[Prediction]:
        if self._predict_again_at <= now:
            self._predict_again_at = now + LOOK_AGAIN_SECONDS
            likeliest = self._predictor.ranked(time_of_day)[:PREDICTED_MAX]
            self._likeliest = [prediction for prediction in likeliest if prediction.share >= LEAST_SHARE]
        return self._likeliest

    def _goal(self, model: str, reason: Reason, now: Seconds) -> Goal | None:
        """None if its way back reads no files, or they were read ahead lately."""
        if model not in self._ahead or self._ahead[model].again_at > now:
            return None
        match self._scheduler.state(model):
            case Cold() | Failed():
                return Goal(model, None, reason)
            case Asleep(eviction) if reads_files(eviction):
                return Goal(model, eviction, reason)
            case _:
                return None


def reads_files(eviction: Eviction) -> bool:
    """Whether a model that left so reads files on its way back."""
    return eviction.process is Process.CHECKPOINT or eviction.weights is Weights.DISCARD
