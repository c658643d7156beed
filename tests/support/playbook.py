"""A small language for scenarios of the core: after this event, these actions."""

from llmux.core.actions import Action, Admit, CommandDone, Evict, Reject, Revoke, SetTimer, Wake
from llmux.core.identifiers import ALL_OF_IT
from llmux.core.policies.base import Policy
from llmux.core.policies.fifo import Fifo
from llmux.core.settings import Limits, ModelSpec
from tests.support.core_driver import CoreDriver
from tests.support.core_truth import Held

LIMITS = Limits(min_active_seconds=5.0, max_wait_seconds=15.0, drain_timeout_seconds=20.0)


def play(*specs: ModelSpec, policy: Policy | None = None, limits: Limits = LIMITS, **more: object) -> CoreDriver:
    """A driver in which nothing happens by itself, except that timers fire as time passes."""
    capacity = more.pop("capacity", ALL_OF_IT)
    return CoreDriver(specs, policy or Fifo(), limits, capacity, fates=Held(), **more)  # type: ignore[arg-type]


def serving(driver: CoreDriver, model: str) -> None:
    """Bring a cold model onto an empty GPU by a request that is then answered."""
    request = driver.arrive(model)
    driver.finish_wake(model)
    driver.complete(request)


def performed(driver: CoreDriver, since: int = 0) -> list[str]:
    """The actions so far, timers left out, in short: ``wake a``, ``evict a offload+keep_running``, ``admit 3``."""
    return [text for action in driver.log[since:] if (text := _short(action))]


def _short(action: Action) -> str:
    match action:
        case Admit(_, instance):
            return f"admit {instance.model}"
        case Reject(_, error):
            return f"reject {type(error).__name__}"
        case Revoke(_, error):
            return f"revoke {type(error).__name__}"
        case Wake(instance, asleep, _):
            return f"wake {instance}" + ("" if asleep is None else f" from {asleep}")
        case Evict(instance, eviction):
            return f"evict {instance.model} {eviction}"
        case CommandDone(_, error):
            return "command done" if error is None else f"command failed: {error}"
        case SetTimer():
            return ""
        case _:
            return type(action).__name__
