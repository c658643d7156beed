"""How long the simulated engine takes over everything it does."""

from dataclasses import dataclass


@dataclass(slots=True)
class Timings:
    """Durations in seconds; ``/control`` changes them while the engine runs."""

    first_token_seconds: float = 0.05
    token_seconds: float = 0.0
    prefill_tokens_per_second: float = 0.0
    """0: the prompt's length costs nothing."""
    sleep_seconds: float = 0.0
    wake_seconds: float = 0.0
    reload_seconds: float = 0.1

    def before_token(self, index: int, prompt_tokens: int) -> float:
        """The delay before the token with this index."""
        if index:
            return self.token_seconds
        prefill = prompt_tokens / self.prefill_tokens_per_second if self.prefill_tokens_per_second else 0.0
        return self.first_token_seconds + prefill
