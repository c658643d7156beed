"""For how long an engine is expected to be busy: what is in flight ends, and more comes.

Requests are known by their number alone, so ends and arrivals count as random. Times are medians, because a mean is
made by the few longest. ``residence_seconds`` is how long a request is in flight, ``remaining_seconds`` how much of
that one that is in flight has before it: at a random moment a long answer is more likely to be met than a short one.
"""

import math

from llmux.core.identifiers import Seconds

_STEP = 0.1
"""Of a residence time, in which the chance that the engine has become idle is added up."""
_STEPS_MAX = 400
"""An engine that is busy for forty residence times counts as never idle."""
_HALF = math.log(2.0)


def in_flight_after(elapsed: Seconds, number: float, arrivals_per_second: float, residence_seconds: Seconds) -> float:
    """How many are in flight then, on average: what is left of ``number``, and of those that have come."""
    left = math.exp(-elapsed / residence_seconds)
    return number * left + arrivals_per_second * residence_seconds * (1.0 - left)


def seconds_until_ended(number: float, remaining_seconds: Seconds) -> Seconds:
    """When as likely as not all of the requests in flight have ended, while none is admitted."""
    if number <= 0:
        return 0.0
    return -remaining_seconds * math.log(1.0 - math.pow(0.5, 1.0 / number))


def seconds_until_idle(
    number: float, arrivals_per_second: float, residence_seconds: Seconds, remaining_seconds: Seconds
) -> Seconds:
    """When as likely as not there has been a moment with nothing in flight, while requests are admitted.

    Infinity where that is not to be expected. In each step, the chance of becoming idle is that of a single request in
    flight, by the rate at which it ends, given that the engine was busy until then.
    """
    if arrivals_per_second <= 0 or number <= 0:
        return seconds_until_ended(number, remaining_seconds)
    load = arrivals_per_second * residence_seconds
    faster = residence_seconds / remaining_seconds
    hazard = 0.0
    for step in range(_STEPS_MAX):
        elapsed = _STEP * (step + 0.5)
        left = math.exp(-elapsed * faster)
        gone = 1.0 - left
        came = load * -math.expm1(-elapsed)
        all_gone = math.pow(gone, number)
        one_left = number * left * math.pow(gone, number - 1.0) * faster + all_gone * came
        none_came = math.exp(-came)
        new = _STEP * none_came * one_left / max(1e-9, 1.0 - all_gone * none_came)
        if hazard + new >= _HALF:
            return residence_seconds * _STEP * (step + (_HALF - hazard) / new)
        hazard += new
    return math.inf
