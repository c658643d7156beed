"""How often a running llmux has switched, and how long that took, from its metrics."""

from collections import Counter
from dataclasses import dataclass, field

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from llmux.errors import LlmuxError

PATH = "/metrics"
TIMEOUT_SECONDS = 30.0


class NotObservable(LlmuxError):
    """The address does not answer with llmux's metrics."""


@dataclass(frozen=True, slots=True)
class SwitchCounts:
    """Totals since llmux was started."""

    by_model: Counter[str] = field(default_factory=Counter)
    """Switches to each model."""
    evictions: int = 0
    """Switches for which another model had to leave."""
    draining_seconds: float = 0.0
    leaving_seconds: float = 0.0
    coming_seconds: float = 0.0
    asking_seconds: float = 0.0
    """The part of it in which engines were asked whether they still say the same, and read again what was frozen."""

    def since(self, before: "SwitchCounts") -> "SwitchCounts":
        """What has come on top."""
        return SwitchCounts(
            self.by_model - before.by_model,
            self.evictions - before.evictions,
            max(0.0, self.draining_seconds - before.draining_seconds),
            max(0.0, self.leaving_seconds - before.leaving_seconds),
            max(0.0, self.coming_seconds - before.coming_seconds),
            max(0.0, self.asking_seconds - before.asking_seconds),
        )

    @property
    def mean_costs(self) -> str | None:
        """What a switch took on average, in the words of ``--costs``; None if nobody had to leave."""
        return self._costs(self.coming_seconds)

    def mean_costs_if_asking_takes(self, seconds: float) -> str | None:
        """The same without what was read again: as if every question had been answered in this time."""
        return self._costs(self.coming_seconds - self.asking_seconds + seconds * self.by_model.total())

    def _costs(self, coming_seconds: float) -> str | None:
        if self.evictions <= 0:
            return None
        evict, wake = self.leaving_seconds / self.evictions, coming_seconds / self.by_model.total()
        return f"evict={evict:.3f},wake={wake:.3f}"


async def read_switches(session: aiohttp.ClientSession) -> SwitchCounts:
    """Ask for the metrics; raises ``NotObservable``."""
    try:
        async with session.get(PATH, timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise NotObservable(f"{answer.url} answers {answer.status}: is this the main port of llmux?")
        return parse(text)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise NotObservable(f"no metrics from llmux ({error}): is it running, and is this its main port?") from None
    except ValueError:
        raise NotObservable(f"what {PATH} answers are not the metrics of llmux") from None


def parse(text: str) -> SwitchCounts:
    """The switches in a scrape; raises ``ValueError`` if there are none of llmux's metrics in it."""
    by_model: Counter[str] = Counter()
    evictions = 0
    phases: Counter[str] = Counter()
    asking_seconds = 0.0
    names = set()
    for family in text_string_to_metric_families(text):
        names.add(family.name)
        for sample in family.samples:
            if sample.name == "llmux_switches_total":
                by_model[sample.labels["to"]] += int(sample.value)
                evictions += int(sample.value) if sample.labels["from"] else 0
            elif sample.name == "llmux_switch_phase_seconds_sum":
                phases[sample.labels["phase"]] += sample.value  # type: ignore[assignment]
            elif sample.name == "llmux_canary_seconds_total":
                asking_seconds += sample.value
    if "llmux_switches" not in names:
        raise ValueError("no llmux_switches")
    return SwitchCounts(by_model, evictions, phases["drain"], phases["sleep"], phases["wake"], asking_seconds)
